"""Hidden states of all samples at every block, one row per sequence, and intervals by leaving groups of them out."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from keylayers.criteria.support.batch_groups import GROUPS
from keylayers.criteria.support.hidden_states import HiddenStates, Position, Side
from keylayers.criteria.support.observers import Blocks
from keylayers.errors import BadInput

LEAST_PER_GROUP = 2
"""Samples in a group; fewer make no interval worth showing."""


class Rows:
    """Rows of each block over all batches; memory: sequences x blocks x width in float32, on the CPU."""

    def __init__(self, blocks: Blocks, side: Side, position: Position) -> None:
        self.blocks, self.side, self.position = blocks, side, position
        self._parts: list[list[Tensor]] = [[] for _ in blocks.layers]

    def observe(self, seen: HiddenStates) -> None:
        """Keeps the rows of one batch."""
        for block, parts in enumerate(self._parts):
            rows = seen.rows(block, self.side, self.position)
            parts.append(seen.kept(("on the CPU", id(rows)), rows.cpu))

    def finish(self) -> list[Float[Tensor, "samples d_model"]]:
        """Every block's rows, the samples in the order seen.

        Raises:
            BadInput: naming a block whose rows are all the same, so that nothing can be compared with them.
        """
        whole = [torch.cat(parts) for parts in self._parts]
        for layer, rows in zip(self.blocks.layers, whole, strict=True):
            if len(rows) and bool((rows == rows[0]).all()):
                raise BadInput(
                    f"the hidden states at block {layer.name} are the same for all {len(rows)} records at "
                    f"position={self.position}; give other records, or give `settings.position=mean`."
                )
        return whole


def jackknife_bounds(
    value: Float[np.ndarray, " blocks"],
    samples: int,
    least: int,
    without: Callable[[Int[Tensor, " kept"]], Float[np.ndarray, " blocks"]],
) -> Float[np.ndarray, "blocks 2"] | None:
    """95 % bounds from the spread of the value over samples with one group of them left out (Efron and Stein 1981).

    `without` gives the value on the samples kept; None where fewer than `least` would be kept, or groups are too small.
    """
    groups = min(GROUPS, samples // LEAST_PER_GROUP)
    if groups < 3 or samples - -(-samples // groups) < least:
        return None
    from scipy.special import stdtrit  # here: importing scipy would slow the start of every command

    place = torch.arange(samples) % groups
    each = np.stack([without((place != group).nonzero().flatten()) for group in range(groups)])
    error = np.sqrt((groups - 1) / groups * np.square(each - each.mean(0)).sum(0))
    reach = float(stdtrit(groups - 1, 0.975)) * error
    return np.stack([value - reach, value + reach], axis=1)


def mean_over(
    chosen: Sequence[Sequence[int]], table: Float[np.ndarray, "states states"]
) -> Float[np.ndarray, " blocks"]:
    """Of each block the mean of its row of the table over the chosen columns; 1 (no shift) where none is chosen."""
    return np.array([table[block, list(some)].mean() if some else 1.0 for block, some in enumerate(chosen)])
