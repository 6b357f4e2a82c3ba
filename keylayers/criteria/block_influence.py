"""How far a block turns the hidden states: one minus the cosine between what enters it and what leaves it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence
from keylayers.criteria.support.hidden_states import HiddenStates, Position
from keylayers.criteria.support.observers import Blocks, Means, Observed, observing
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer


@dataclass(frozen=True)
class BlockInfluence(CriterionSettings):
    """Settings of `block_influence`."""

    position: Position = "all"
    """Positions compared: all tokens as published, or one vector per sequence: prompt, last or mean."""


@observing(settings=BlockInfluence)
def score_block_influence(evidence: Evidence, blocks: Blocks, settings: BlockInfluence) -> "Influence":
    """1 - E cos(hidden states in, hidden states out) of each block, in [0, 2]; 0 for one that only scales them.

    ShortGPT (Men et al. 2024, Eq. 1): blocks of low influence are the ones to remove, so high is critical. Computed as
    half the squared distance of the unit vectors, which is exact near 0. Memory: two batches of hidden states.

    Raises:
        BadInput: naming a block that changes the width or number of positions, whose ends have no angle.
    """
    return Influence(blocks, settings)


class Influence:
    """Sums of one minus the cosine, per block."""

    def __init__(self, blocks: Blocks, settings: BlockInfluence) -> None:
        self.blocks, self.settings, self.means = blocks, settings, Means()

    def observe(self, seen: HiddenStates) -> None:
        sums, counts = [], []
        entering: tuple[Tensor, Tensor] | None = None
        for index, layer in enumerate(self.blocks.layers):
            before = seen.rows(index, "before", self.settings.position)
            after = seen.rows(index, "after", self.settings.position)
            same_shape(before, after, layer, "block_influence")
            start = entering[1] if entering is not None and entering[0] is before else unit(before)
            end = unit(after)
            sums.append(float(one_minus_cosine(start, end).sum(dtype=torch.float64)))
            counts.append(len(after))
            entering = (after, end)
        self.means.add(sums, counts)

    def finish(self) -> Observed:
        values, repeats = self.means.finish()
        return Observed(values, repeats)


def unit(rows: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
    """Rows of length 1; those of zeros stay."""
    return torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(rows.dtype).tiny)


def one_minus_cosine(u: Float[Tensor, "rows d_model"], v: Float[Tensor, "rows d_model"]) -> Float[Tensor, " rows"]:
    """Of rows of length 1 or 0: 0 between two zeros, 1 between a zero and anything else."""
    half = (u - v).square().sum(1) / 2
    alone = (torch.linalg.vector_norm(u, dim=1) > 0) != (torch.linalg.vector_norm(v, dim=1) > 0)
    return torch.where(alone, 1.0, half)


def same_shape(before: Tensor, after: Tensor, layer: Layer, criterion: str) -> None:
    """Raises BadInput, naming the block, unless what enters and what leaves have one shape."""
    if before.shape != after.shape:
        raise BadInput(
            f"block {layer.name} turns {tuple(before.shape)} hidden states into {tuple(after.shape)}, which have "
            f"no angle between them, so {criterion} cannot score it; use cka_shift with `settings.position=mean`."
        )
