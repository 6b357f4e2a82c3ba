"""Taking back the unimportant changes of an already tuned model: no training, only deltas kept or dropped."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from keylayers.actions.mixing import Mixture, mixture
from keylayers.errors import BadInput
from keylayers.files.atomic import replacing_folder
from keylayers.layers.deltas import Deltas
from keylayers.layers.gating import frozen, gated
from keylayers.layers.model_versions import REMAINDER, Remainder
from keylayers.layers.tensors import INDEX, PICKLES, SINGLE
from keylayers.models.adapters import is_adapter
from keylayers.runs.lock import locked_beside
from keylayers.runs.seals import SEAL, check_seal
from keylayers.scores.selection import Selection

SHARD_BYTES = 2 * 2**30


@contextmanager
def kept_only(
    model: nn.Module, deltas: Deltas, selection: Selection, *, remainder: Remainder = REMAINDER
) -> Iterator[nn.Module]:
    """The base model with the selected layers' changes alone, until the block ends; frozen, in eval mode.

    `remainder` says whose is what lies outside the scored layers (norms, embeddings).
    """
    if [layer.name for layer in selection.layers] != [layer.name for layer in deltas.layers]:
        raise BadInput("the selection and the deltas are over different layers; score and select at one granularity.")
    gates = torch.from_numpy(np.array(selection.mask, dtype=np.float32))
    with frozen(model), gated(model, deltas, gates, float(remainder == "tuned")):
        yield model


def write_reverted(
    base: Path, tuned: Path, selection: Selection, out: Path, *, remainder: Remainder = REMAINDER
) -> Mixture:
    """Writes a checkpoint with the tuned tensors of the selected layers and the base's of the other scored layers.

    `remainder` says whose are the tensors outside the scored layers (norms, embeddings). A LoRA adapter as the tuned
    model is merged for the selected layers. Streams tensor by tensor, in shards of 2 GiB; the folder appears whole or
    not at all. Returns what it was made of.

    Raises:
        BadInput: as `mixture` does, or if `out` exists or cannot be written.
    """
    for place in (base, tuned):
        check_seal(place, "make it again", f"delete {str(place / SEAL)!r} if it was changed on purpose")
    made = mixture(base, tuned, selection, remainder)
    _refuse_present(out)
    with locked_beside(out):
        _refuse_present(out)  # another process may have made it by now
        with replacing_folder(out) as partial:
            for file in companions(made):
                shutil.copy2(file, partial / file.name)
            _write_shards(partial, made)
    return made


def _refuse_present(out: Path) -> None:
    if os.path.lexists(out):
        raise BadInput(f"{out} exists already", "give another `out`")


def companions(made: Mixture) -> Iterator[Path]:
    """The files that go with the weights: configuration, tokenizer; of an adapter its tokenizer alone."""
    seen = set[str]()
    for folder in made.files:
        for file in sorted(folder.iterdir()):
            weights = file.suffix in {".safetensors", *PICKLES} or "index" in file.name or file.name == SEAL
            foreign = is_adapter(folder) and not re.match(
                r"tokenizer|special_tokens|added_tokens|chat_template", file.name
            )
            if file.is_file() and not weights and not foreign and file.name not in seen:
                seen.add(file.name)
                yield file


def _write_shards(folder: Path, made: Mixture) -> None:
    """Every tensor, in files of at most `SHARD_BYTES`."""
    from safetensors.torch import save_file

    where: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    held = total = number = 0

    def flush() -> None:
        nonlocal held, number, shard
        if shard:
            number += 1
            name = f"model-{number:05d}.safetensors"
            save_file(shard, folder / name, metadata={"format": "pt"})
            where.update(dict.fromkeys(shard, name))
            shard, held = {}, 0

    for name, load in made.tensors.items():
        tensor = load()
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
