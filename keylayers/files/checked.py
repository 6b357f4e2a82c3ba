"""Files that are whole or absent: written beside, synced and renamed; checked by the sha256 that each carries.

The checksum lies inside the file (a last key of the JSON object, an entry of the safetensors header), so one rename
publishes both at once and no moment exists at which they disagree.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keylayers.errors import BadInput
from keylayers.files import check_regular, reason
from keylayers.files.atomic import replacing
from keylayers.files.canonical import canonical_json, digest, plain

if TYPE_CHECKING:
    import torch


LONGEST_NUMBER = 300
"""Digits of a whole number; the largest float has 309."""


def write_text(path: str | Path, text: str) -> None:
    """Replaces the file by this text, in UTF-8; at every moment the path holds the old file or the new one.

    Raises:
        BadInput: folder not writable, disk full; nothing is left behind.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Replaces the file by this object, indented for reading, with its own digest as last key `sha256`."""
    content = plain(value)
    write_text(path, json.dumps(content | {"sha256": digest(content)}, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, **expected: type) -> dict[str, Any]:
    """The object that `write_json` wrote, without its digest; `expected` names entries that it must have.

    Raises:
        BadInput: missing, truncated, changed since it was written, or without such an entry of that type.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise BadInput(f"no file {str(path)!r}; it is written by the run that this folder belongs to")
    check_regular(path)
    try:
        content = json.loads(path.read_bytes(), parse_int=_whole_number)
    except OSError as error:
        raise BadInput(f"cannot read {str(path)!r}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"is not whole JSON ({reason(error)})") from error
    if not isinstance(content, dict) or "sha256" not in content:
        raise _damaged(path, "holds no sha256 of its content")
    recorded = content.pop("sha256")
    try:
        actual = digest(content)
    except BadInput as error:
        raise _damaged(path, f"holds what was never written ({error})") from error
    if actual != recorded:
        raise _damaged(path, f"does not match its sha256 ({str(recorded)[:12]}... recorded, {actual[:12]}... found)")
    for name, kind in expected.items():
        if name not in content or not isinstance(content[name], kind):
            raise _damaged(path, f"has no {name!r} as such files have it")
    return content


def write_tensors(
    path: str | Path, tensors: Mapping[str, "torch.Tensor"], meta: Mapping[str, Any] | None = None
) -> None:
    """Replaces the file by these tensors (safetensors, on the CPU) with `meta` and a digest of both in its header."""
    from safetensors.torch import save_file

    whole: dict[str, torch.Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        if own.untyped_storage().data_ptr() in storages:
            own = own.clone()  # the format refuses tensors that share memory
        storages.add(own.untyped_storage().data_ptr())
        whole[name] = own
    text = canonical_json(meta or {})
    header = {"meta": text, "sha256": _tensors_digest(whole, text)}
    with replacing(Path(path)) as temporary:
        save_file(whole, temporary, metadata=header)


def read_tensors(path: str | Path) -> tuple[dict[str, "torch.Tensor"], dict[str, Any]]:
    """The tensors and the meta data that `write_tensors` wrote, verified.

    Raises:
        BadInput: missing, truncated, changed since it was written, or not written by `write_tensors`.
    """
    from safetensors import safe_open

    path = Path(path)
    if not path.is_file():
        raise BadInput(f"no file {str(path)!r}; it is written by the run that this folder belongs to")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:
        raise _damaged(path, f"is not a whole safetensors file ({reason(error)})") from error
    if "sha256" not in header or "meta" not in header:
        raise _damaged(path, "holds no sha256 of its content")
    if _tensors_digest(tensors, header["meta"]) != header["sha256"]:
        raise _damaged(path, "does not match its sha256")
    return tensors, json.loads(header["meta"])


def _whole_number(digits: str) -> int:
    """A number as runs count things: what is larger than any float was never written, and cannot be shown."""
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"the number {digits[:20]}... has {len(digits)} digits")
    return int(digits)


def _damaged(path: Path, what: str) -> BadInput:
    return BadInput(f"{str(path)!r} {what}: damaged", "delete it to have it computed again", "start over with `fresh`")


def _tensors_digest(tensors: Mapping[str, "torch.Tensor"], meta: str) -> str:
    """sha256 over meta and every tensor's name, type, shape and bytes, in the order of their names."""
    import torch

    sha = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"\n{name}\n{tensor.dtype}\n{tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
