"""What the cells of the study of data-oblivious layers compute, beside those that all studies share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.papers.data_oblivious.component_removal import removal
from keylayers.papers.data_oblivious.poison import poisoned, unpoisoned
from keylayers.papers.data_oblivious.starts import start
from keylayers.runs.quiet import quiet_libraries
from keylayers.runs.seals import check_seal
from keylayers.scores import LayerScores
from keylayers.studies import text_cells
from keylayers.studies.text_task import LoadedTask, load_task


def compute(folder: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """One cell: one of this study's, else one that all studies share; a model may be one that the run stored."""
    task, inputs = fields["task"], fields["task"]["inputs"]
    if (stored := Path(folder) / inputs["model"]).is_dir():
        check_seal(stored, "start this study over with `fresh`")
        task = {**task, "inputs": {**inputs, "model": str(stored)}}
    if fields["do"] not in DO:
        return text_cells.compute(folder, {**fields, "task": task})
    quiet_libraries()
    given = {key: value for key, value in fields.items() if key not in ("do", "task", "asks")}
    return DO[fields["do"]](load_task(task), Path(folder), **given)


def blocks(place: LoadedTask, folder: Path) -> dict[str, Any]:
    """Names of the layers in each block, in forward order, and of those outside the blocks."""
    count = 1 + max(layer.block for layer in place.layers if layer.block is not None)
    return {
        "blocks": [[layer.name for layer in place.layers if layer.block == block] for block in range(count)],
        "outside": [layer.name for layer in place.layers if layer.block is None],
    }


DO: dict[str, Callable[..., dict[str, Any]]] = {
    "blocks": blocks,
    "start": start,
    "poisoned": poisoned,
    "unpoisoned": unpoisoned,
    "removal": removal,
}


def block_profile(scores: LayerScores) -> Float[np.ndarray, " blocks"]:
    """The score of each block, from scores that give every layer that of its block."""
    first: dict[int, float] = {}
    for layer, value in zip(scores.layers, scores.values, strict=True):
        if layer.block is not None:
            first.setdefault(layer.block, float(value))
    return np.array([first[block] for block in sorted(first)])
