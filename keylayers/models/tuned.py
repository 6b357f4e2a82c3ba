"""What tuning changed, from whatever a user names as tuned: a checkpoint, a LoRA adapter or a weights file."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from keylayers.errors import BadInput
from keylayers.layers.deltas import Deltas, deltas_from_adapter, deltas_from_checkpoints
from keylayers.layers.layer import Layer
from keylayers.layers.restoring import restored
from keylayers.layers.structure import first_names, tensors_of, unwrap
from keylayers.layers.tensors import (
    check_same_tensors,
    comparable,
    equal_tensors,
    refuse_pickles,
    tensors_in_memory,
    tensors_on_disk,
)
from keylayers.models.loading import load_model, load_shape, local_folder


def deltas_of(
    base: nn.Module, tuned: str | Path, layers: Sequence[Layer], *, trust_remote_code: bool = False
) -> Deltas:
    """Deltas of the layers between a base model in memory and a tuned one: a folder, a hub id, a weights file, or a
    folder that holds a LoRA adapter.

    The base counts in its own precision. A checkpoint whose names and shapes are the model's is streamed from disk, one
    tensor at a time. Where transformers stores other names (one tensor per expert of a mixture, older spellings), the
    tuned model is loaded beside the base and kept while the deltas are used.

    Raises:
        BadInput: if the two are not versions of one model or are equal, or if only a pickle is there.
    """
    path = _on_this_machine(str(tuned))
    if (path / "adapter_config.json").is_file():
        return _deltas_of_adapter(base, path, layers)
    stored = tensors_on_disk(path)
    first = tensors_in_memory(base, "the base model")
    named = comparable(stored, first_names(base))
    if path.is_file() or (first.shapes == named.shapes):
        return deltas_from_checkpoints(base, stored, layers)
    if not (path / "config.json").is_file():
        check_same_tensors(first, named)
    shape = load_shape(str(path), trust_remote_code=trust_remote_code)
    check_same_tensors(first, tensors_in_memory(shape, str(path)))  # before memory is spent on its weights
    other = load_model(str(path), dtype=_dtype_of(base), device="cpu", trust_remote_code=trust_remote_code).model
    return deltas_from_checkpoints(base, tensors_in_memory(other, str(path)), layers)


def _deltas_of_adapter(base: nn.Module, folder: Path, layers: Sequence[Layer]) -> Deltas:
    """Deltas of a stored peft adapter; it is put on the base for a moment, which is then as it was."""
    from peft import PeftModel

    if not any(folder.glob("*.safetensors")):
        refuse_pickles(folder.glob("*"))
    _check_same_base(base, folder)
    with restored(base), torch.random.fork_rng(devices=[]):  # peft draws before it loads
        try:
            adapted = PeftModel.from_pretrained(unwrap(base), str(folder))
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise BadInput(f"adapter {folder} does not fit the base model: {str(error).splitlines()[0]}") from error
        return deltas_from_adapter(adapted, layers)


def _check_same_base(base: nn.Module, folder: Path) -> None:
    """peft stores embeddings beside the adapter when the head is adapted, and would load them into the base."""
    own = tensors_of(base)
    for file in folder.glob("*.safetensors"):
        for name, load in tensors_on_disk(file).items():
            if name in own and own[name].is_floating_point() and not equal_tensors(own[name].detach(), load()):
                raise BadInput(
                    f"adapter {folder} holds another {name} than the base model: it was trained on another base, or "
                    "trained that too; merge the adapter and give both checkpoints."
                )


def _on_this_machine(source: str) -> Path:
    """The folder or file, a hub id's files fetched or taken from the cache."""
    if Path(source).is_file():
        return Path(source)
    folder = local_folder(source)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"cannot find the tuned model {source!r}: {str(error).splitlines()[0]} Expected a hub id that is reachable "
            "or cached, a checkpoint or adapter folder, or a safetensors file."
        ) from error


def _dtype_of(model: nn.Module) -> str:
    floating = (p.dtype for p in model.parameters() if p.is_floating_point())
    return str(next(floating, torch.float32)).removeprefix("torch.")
