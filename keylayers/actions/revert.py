"""Taking back the unimportant changes of an already tuned model: no training, only deltas kept or dropped."""

import json
import os
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from keylayers.errors import BadInput
from keylayers.files.replacing import replacing_folder
from keylayers.layers.deltas import Deltas
from keylayers.layers.gating import frozen, gated
from keylayers.layers.tensors import INDEX, PICKLES, SINGLE, TensorSource, check_same_tensors, tensors_on_disk
from keylayers.runs.lock import locked_beside
from keylayers.runs.seals import SEAL, check_seal
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
    """Writes a checkpoint with the tuned tensors of the selected layers and the base's of the other scored layers.

    `remainder` says whether tensors outside the scored layers (norms, embeddings) are the tuned ones. Streams tensor by
    tensor, in shards of 2 GiB; the folder appears whole or not at all. Returns how many tensors were taken from the
    tuned and from the base checkpoint.

    Raises:
        BadInput: if the checkpoints are not versions of one model, store the scored tensors under other names, or `out`
            exists or cannot be written.
    """
    for place in (base, tuned):
        if (place / "adapter_config.json").is_file():
            raise BadInput(
                f"{place} is a LoRA adapter, not a checkpoint; merge it into its base model first (peft's "
                "merge_and_unload, then save_pretrained)."
            )
    if not tuned.is_dir():
        raise BadInput(f"no checkpoint folder at {tuned}; give the folder that save_pretrained wrote.")
    for place in (base, tuned):
        check_seal(place, "make it again", f"delete {str(place / SEAL)!r} if it was changed on purpose")
    first, second = tensors_on_disk(base), tensors_on_disk(tuned)
    check_same_tensors(first, second)
    _refuse_present(out)
    scored = {name for layer in selection.layers if layer.tied_to is None for name in layer.parameters}
    if absent := sorted(scored - set(second)):
        raise BadInput(
            f"{tuned} does not hold {len(absent)} of the {len(scored)} scored tensors, first {absent[0]}; the scores "
            "are of another model or granularity, or the checkpoint names its tensors otherwise than the model does."
        )
    chosen = {name for layer in selection.chosen for name in layer.parameters}
    kept = chosen | (set(first) - scored if remainder else set())
    with locked_beside(out):
        _refuse_present(out)  # another process may have made it by now
        with replacing_folder(out) as partial:
            for file in tuned.iterdir():
                other = file.suffix not in {".safetensors", *PICKLES} and "index" not in file.name
                if file.is_file() and other and file.name != SEAL:
                    shutil.copy2(file, partial / file.name)
            return _write_shards(partial, first, second, kept)


def _refuse_present(out: Path) -> None:
    if os.path.lexists(out):
        raise BadInput(f"{out} exists already", "give another `out`")


def _write_shards(folder: Path, base: TensorSource, tuned: TensorSource, kept: Container[str]) -> tuple[int, int]:
    """Every tensor, from the tuned checkpoint where its name is kept; how many came from the tuned, how many not."""
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
        tensor = (tuned if name in kept else base)[name]()
        taken += name in kept
        size = tensor.numel() * tensor.element_size()
        if held + size > SHARD_BYTES:
            flush()
        shard[name] = tensor.contiguous()
        held, total = held + size, total + size
    flush()
    if number == 1:
        (folder / "model-00001.safetensors").rename(folder / SINGLE)
    else:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
    return taken, len(where) - taken
