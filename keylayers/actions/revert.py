"""Taking back the unimportant changes of an already tuned model: no training, only deltas kept or dropped."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from keylayers.errors import BadInput
from keylayers.layers.deltas import Deltas
from keylayers.layers.gating import frozen, gated
from keylayers.layers.tensors import check_same_tensors, tensors_on_disk
from keylayers.scores.selection import Selection

SHARD_BYTES = 2 * 2**30


@contextmanager
def kept_only(model: nn.Module, deltas: Deltas, selection: Selection, *, remainder: bool = True) -> Iterator[nn.Module]:
    """The base model with the selected layers' changes alone, until the block ends; frozen, in eval mode.

    `remainder` says whether changes outside the scored layers (norms, embeddings) stay.
    """
    if [layer.name for layer in selection.layers] != [layer.name for layer in deltas.layers]:
        raise BadInput("the selection and the deltas are over different layers; score and select at one granularity.")
    gates = torch.from_numpy(np.array(selection.mask, dtype=np.float32))
    with frozen(model), gated(model, deltas, gates, float(remainder)):
        yield model


def write_reverted(
    base: Path, tuned: Path, selection: Selection, out: Path, *, remainder: bool = True
) -> tuple[int, int]:
    """Writes a checkpoint with the tuned tensors of the selected layers and the base's elsewhere.

    Streams tensor by tensor, in shards of 2 GiB; the folder appears whole or not at all. Returns how many tensors were
    taken from the tuned and from the base checkpoint.

    Raises:
        BadInput: if the checkpoints are not versions of one model, a selected tensor is in neither, or `out` exists.
    """
    first, second = tensors_on_disk(base), tensors_on_disk(tuned)
    check_same_tensors(first, second)
    if out.exists():
        raise BadInput(f"{out} exists already; give another --out.")
    chosen = {name for layer in selection.chosen for name in layer.parameters}
    scored = {name for layer in selection.layers for name in layer.parameters}
    if absent := sorted(chosen - set(second)):
        raise BadInput(
            f"{tuned} stores its tensors under other names than the model uses (no {absent[0]}); "
            "load and save both checkpoints with save_pretrained first."
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for file in Path(tuned).iterdir():
            if (
                file.is_file()
                and file.suffix not in {".safetensors", ".bin", ".pt", ".pth"}
                and "index" not in file.name
            ):
                shutil.copy2(file, partial / file.name)
        taken = _write_shards(partial, first, second, lambda name: name in chosen or (remainder and name not in scored))
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return taken


def _write_shards(folder: Path, base, tuned, from_tuned) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    where: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    held = total = taken = number = 0

    def flush() -> None:
        nonlocal held, number, shard
        if shard:
            number += 1
            name = f"model-{number:05d}.safetensors"
            save_file(shard, folder / name, metadata={"format": "pt"})
            where.update(dict.fromkeys(shard, name))
            shard, held = {}, 0

    for name in base:
        tensor = (tuned if from_tuned(name) else base)[name]()
        taken += from_tuned(name)
        size = tensor.numel() * tensor.element_size()
        if held + size > SHARD_BYTES:
            flush()
        shard[name] = tensor.contiguous()
        held, total = held + size, total + size
    flush()
    if number == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
    else:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return taken, len(where) - taken
