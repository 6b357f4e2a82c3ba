"""What tuning changed, from whatever a user names as tuned: a checkpoint, a LoRA adapter or a weights file."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from keylayers.errors import BadInput
from keylayers.files import check_folder, check_regular, explained
from keylayers.layers.deltas import Deltas, deltas_from_checkpoints
from keylayers.layers.layer import Layer
from keylayers.layers.model_versions import comparable, versions
from keylayers.layers.tensors import TensorSource, tensors_in_memory, tensors_on_disk
from keylayers.models.adapters import adapters_within, deltas_of_adapter, is_adapter
from keylayers.models.loading import load_model, load_shape
from keylayers.models.sources import local_folder


def deltas_of(
    base: nn.Module,
    tuned: str | Path,
    layers: Sequence[Layer],
    *,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
) -> Deltas:
    """Deltas of the layers between a base model in memory and a tuned one: a folder, a hub id, a weights file, or a
    folder that holds a LoRA adapter.

    Both count in the coarser of their precisions. A checkpoint whose names are the model's is streamed from disk, one
    tensor at a time. Where transformers stores other names (one tensor per expert of a mixture, older spellings), the
    tuned model is loaded beside the base and kept while the deltas are used.

    Raises:
        BadInput: if the two are not versions of one model or are equal, if one is quantised, or if only a pickle is
            there and not allowed; for an adapter as `deltas_of_adapter` does.
    """
    path = tuned_path(tuned, allow_pickle=allow_pickle)
    if is_adapter(path):
        return deltas_of_adapter(base, path, layers, allow_pickle=allow_pickle)
    if (path / "config.json").is_file():
        refuse_quantised(path)
    stored = tensors_on_disk(path, allow_pickle=allow_pickle)
    first = tensors_in_memory(base, "the base model")
    if path.is_file() or first.keys() == comparable(stored, base).keys() or not (path / "config.json").is_file():
        return deltas_from_checkpoints(base, stored, layers)
    shape = load_shape(str(path), trust_remote_code=trust_remote_code)
    versions(first, tensors_in_memory(shape, str(path)), base)  # before memory is spent on its weights
    options: dict[str, Any] = {"dtype": dtype_stored(stored), "device": "cpu", "allow_pickle": allow_pickle}
    other = load_model(str(path), trust_remote_code=trust_remote_code, **options).model
    return deltas_from_checkpoints(base, tensors_in_memory(other, str(path)), layers)


def refuse_quantised(folder: Path) -> None:
    """Raises BadInput if a checkpoint's configuration says that its weights are quantised."""
    with explained(f"cannot read {folder / 'config.json'}"):
        config = json.loads(check_regular(folder / "config.json").read_text())
        method = (config.get("quantization_config") or {}).get("quant_method", "")
    if config.get("quantization_config"):
        raise BadInput(
            f"{folder} is quantised ({method or 'see quantization_config in its config.json'}), so that its tensors "
            "are not its weights; give the checkpoint before quantisation."
        )


def tuned_path(tuned: str | Path, *, allow_pickle: bool = False) -> Path:
    """The folder or file of a tuned model, a hub id's files fetched or taken from the cache.

    Raises:
        BadInput: if there is none, or several adapters and none of them is named.
    """
    path = _on_this_machine(str(tuned), allow_pickle)
    bare = path.is_dir() and not is_adapter(path) and not (path / "config.json").is_file()
    if bare and (several := adapters_within(path)):
        raise BadInput(f"{path} holds {len(several)} adapters; name one: {', '.join(several[:5])}.")
    return path


def _on_this_machine(source: str, allow_pickle: bool) -> Path:
    if os.path.isfile(source):
        return Path(source)
    folder = local_folder(source)
    if folder is not None:
        return check_folder(folder)
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", *(["*.bin"] if allow_pickle else [])]
    remedy = "give a hub id that is reachable or cached, a checkpoint or adapter folder, or a safetensors file"
    with explained(f"cannot find the tuned model {source!r}", remedy):
        return Path(snapshot_download(source, allow_patterns=wanted))


def dtype_stored(stored: TensorSource) -> str:
    """The precision of the largest tensor of a checkpoint."""
    largest = max((name for name in stored if name not in stored.counters), key=lambda n: math.prod(stored.shapes[n]))
    return str(stored[largest]().dtype).removeprefix("torch.")
