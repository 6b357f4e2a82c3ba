"""Saved states of a training run: what training can change, bit for bit; a state is whole or it is not used."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.files.atomic import sync
from keylayers.runs import note, read_tensors, write_tensors
from keylayers.runs.seals import SEAL, damage, seal

TENSORS = "trainable.safetensors"


def changing_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What a training step can change: parameters that ask for gradients, and every lasting buffer.

    Frozen weights are left out, so that a state of a selection is as small as the selection.
    """
    found: dict[str, Tensor] = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for place, module in model.named_modules():
        for key, value in module._buffers.items():
            if value is not None and key not in module._non_persistent_buffers_set:
                found[f"{place}.{key}".removeprefix(".")] = value
    return found


def save_tensors(model: nn.Module, state: Path) -> None:
    """Writes what training can change into the folder of a state.

    Not left to `save_pretrained`: it renames the fused tensors of some mixtures of experts, which a resumed Trainer
    then silently leaves as they were.
    """
    write_tensors(state / TENSORS, changing_tensors(model))


def load_tensors(model: nn.Module, state: Path) -> None:
    """Puts the tensors of a state into the model, in place.

    Raises:
        BadInput: if other tensors train now than when it was saved.
    """
    stored, own = read_tensors(state / TENSORS)[0], changing_tensors(model)
    if differing := sorted(stored.keys() ^ own.keys()):
        raise BadInput(
            f"{state} was saved while other tensors were trained ({len(differing)} differ, first {differing[0]})",
            "start over with `fresh`",
            "give another `out`",
        )
    with torch.no_grad():
        for name, value in stored.items():
            own[name].copy_(value)


def read_history(state: Path) -> tuple[int, list[dict[str, Any]]]:
    """Steps done when the state was saved, and what the Trainer logged until then."""
    stored = json.loads((state / "trainer_state.json").read_text(encoding="utf-8"))
    return stored["global_step"], stored["log_history"]


def seal_state(state: Path) -> None:
    """Marks a state as whole by the digests of its files; written last, all at once, when they are on the disk."""
    for path in state.rglob("*"):
        sync(path)
    seal(state)


def newest_whole(folder: Path) -> Path | None:
    """The latest state in which nothing is missing or damaged, or None; what came after it is deleted, with a note."""
    for state in reversed(_states(folder)):
        if (reason := _damage(state)) is None:
            return state
        note(f"leaving out the saved state {state}: {reason}")
        shutil.rmtree(state, ignore_errors=True)
    return None


def forget(folder: Path) -> None:
    """Deletes all states: for a run whose result is stored elsewhere."""
    for state in _states(folder):
        shutil.rmtree(state, ignore_errors=True)


def _states(folder: Path) -> list[Path]:
    """Folders `checkpoint-STEP` as the Trainer writes them, earliest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _damage(state: Path) -> str | None:
    if not (state / SEAL).exists():
        return "the process was stopped while it was written"
    return next((f"{name} {what}" for name, what in damage(state).items()), None)
