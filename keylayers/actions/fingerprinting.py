"""Proof that nothing outside the selection changed: a digest of every tensor, before and after, buffers included."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from keylayers.errors import KeylayersError
from keylayers.layers.structure import walk


def fingerprints(model: nn.Module) -> dict[str, str]:
    """Unwrapped name -> SHA-256 of the bytes of every parameter and persistent buffer; adapters are passed over."""
    model.state_dict()  # bitsandbytes repacks 4-bit weights to evaluate them on some CPUs, and here puts them back
    found: dict[str, str] = {}
    for node in walk(model):
        transient = node.inner._non_persistent_buffers_set
        tensors = {**node.inner._parameters, **{k: v for k, v in node.inner._buffers.items() if k not in transient}}
        for key, value in tensors.items():
            if value is not None:
                found[f"{node.name}.{key}".removeprefix(".")] = digest_of(value)
    return found


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's shape, dtype and bytes."""
    flat = tensor.detach().cpu().contiguous()
    sha = hashlib.sha256(f"{tuple(flat.shape)}{flat.dtype}".encode())
    sha.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def changed_names(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Names whose digests differ, or that only one side has."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]


def check_only_changed(before: Mapping[str, str], after: Mapping[str, str], allowed: Iterable[str]) -> int:
    """How many tensors stayed bit for bit the same.

    Raises:
        KeylayersError: if anything outside `allowed` changed; names the first few.
    """
    changed = changed_names(before, after)
    if stray := sorted(set(changed) - set(allowed)):
        raise KeylayersError(
            f"training changed {len(stray)} tensors outside the selection, first {', '.join(stray[:3])}; the result is "
            "not what was asked for and is not kept. A module that changes its own buffers in training mode does this: "
            "select it too, or put it in eval mode."
        )
    return len(after) - len(changed)
