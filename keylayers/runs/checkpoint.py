"""Resumable loops: the last two states of a loop, each whole or absent."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keylayers.errors import BadInput
from keylayers.files.checked import read_tensors, write_tensors
from keylayers.runs.progress import note

if TYPE_CHECKING:
    import torch

KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A loop's place to save its state; `load` gives the newest state that is whole."""

    folder: Path

    def save(self, step: int, tensors: Mapping[str, "torch.Tensor"], meta: Mapping[str, Any] | None = None) -> None:
        """Stores the state after `step` steps and deletes all but it and the one before."""
        if step < 0:
            raise BadInput(f"checkpoint step {step}: expected the number of steps done, 0 or more")
        write_tensors(self.folder / f"{step:09d}.safetensors", tensors, {"step": step, "meta": dict(meta or {})})
        steps = [int(path.stem) for path in self._files()]
        kept = [earlier for earlier in steps if earlier <= step][-KEPT:]  # later ones belong to an abandoned try
        for path in self._files():
            if int(path.stem) not in kept:
                path.unlink(missing_ok=True)

    def load(self) -> tuple[int, dict[str, "torch.Tensor"], dict[str, Any]] | None:
        """(steps done, tensors, meta) of the newest whole state, or None where nothing was saved.

        Raises:
            BadInput: states exist and every one is damaged.
        """
        damage: BadInput | None = None
        for path in reversed(self._files()):
            try:
                tensors, stored = read_tensors(path)
            except BadInput as error:
                damage = damage or error
                note(f"skipping a damaged checkpoint: {error}")
                continue
            return stored["step"], tensors, stored["meta"]
        if damage:
            raise damage
        return None

    def clear(self) -> None:
        """Deletes all states: for a loop whose result is stored elsewhere."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.safetensors"))
