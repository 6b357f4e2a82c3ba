"""The angle by which a span of blocks turns the hidden states; a block is as critical as its most idle span allows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from keylayers.criteria.block_influence import same_shape, unit
from keylayers.criteria.protocol import CriterionSettings, Evidence
from keylayers.criteria.support.hidden_states import HiddenStates, Position
from keylayers.criteria.support.observers import Blocks, Means, Observed, observing
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.settings import Count


@dataclass(frozen=True)
class AngularDistance(CriterionSettings):
    """Settings of `angular_distance`."""

    span: Count = 1
    """Blocks in a row that are judged together."""
    position: Position = "last"
    """Positions compared: the last token of each sequence as published, or prompt, mean or all."""


def _fits(layers: Sequence[Layer], settings: AngularDistance, batches: int) -> None:
    if settings.span > len(layers):
        asked = settings.spelled("span", settings.span)
        raise BadInput(f"{asked}: expected 1 to {len(layers)}, as many blocks as there are.")


@observing(settings=AngularDistance, fits=_fits)
def score_angular_distance(evidence: Evidence, blocks: Blocks, settings: AngularDistance) -> "Angles":
    """(1/pi) E arccos cos(hidden states before, after) over a span of blocks, in [0, 1]; least of a block's spans.

    Gromov et al. 2024, Eq. 5: the span of the smallest distance is the one to remove, so high is critical. The paper
    scores spans; a block gets the least distance of the spans of `span` blocks that hold it, so that `bottom:span` is
    exactly the paper's span. The angle is 2 atan2(|u - v|, |u + v|) of unit vectors, exact near 0. With a span of 1 and
    all positions it is the mean angle where `block_influence` has the mean cosine.

    Raises:
        BadInput: for a span no stack of blocks holds, or a block that changes the shape of the hidden states.
    """
    longest = max(blocks.stacks.count(stack) for stack in blocks.stacks)
    shortest = min(blocks.stacks.count(stack) for stack in blocks.stacks)
    if settings.span > shortest:
        room = str(longest) if longest == shortest else f"{shortest} in its shorter stack"
        raise BadInput(f"{settings.spelled('span', settings.span)}: expected 1 to {room}, as many blocks as there are.")
    return Angles(blocks, settings)


class Angles:
    """Sums of the angle of every span, by the block it starts at."""

    def __init__(self, blocks: Blocks, settings: AngularDistance) -> None:
        self.blocks, self.settings, self.means = blocks, settings, Means()
        count = len(blocks.layers)
        last = {stack: max(i for i in range(count) if blocks.stacks[i] == stack) for stack in blocks.stacks}
        self.starts = [start for start in range(count) if start + settings.span - 1 <= last[blocks.stacks[start]]]

    def observe(self, seen: HiddenStates) -> None:
        sums, counts = [], []
        position, layers = self.settings.position, self.blocks.layers
        for start in self.starts:
            before = seen.rows(start, "before", position)
            after = seen.rows(start + self.settings.span - 1, "after", position)
            same_shape(before, after, layers[start], "angular_distance")
            sums.append(float(angles(unit(before), unit(after)).sum(dtype=torch.float64)) / torch.pi)
            counts.append(len(after))
        self.means.add(sums, counts)

    def finish(self) -> Observed:
        distances, repeats = self.means.finish()
        starts = [self.blocks.layers[start].name for start in self.starts]
        notes = {"distances": dict(zip(starts, distances.tolist(), strict=True))}
        each = None if repeats is None else np.stack([self._least(one) for one in repeats])
        return Observed(self._least(distances), each, notes=notes)

    def _least(self, distances: Float[np.ndarray, " spans"]) -> Float[np.ndarray, " blocks"]:
        """Of each block the smallest distance among the spans that hold it."""
        values = np.full(len(self.blocks.layers), np.inf)
        for start, distance in zip(self.starts, distances, strict=True):
            inside = slice(start, start + self.settings.span)
            values[inside] = np.minimum(values[inside], distance)
        return values


def angles(u: Float[Tensor, "rows d_model"], v: Float[Tensor, "rows d_model"]) -> Float[Tensor, " rows"]:
    """Angles between unit rows, in radians; of a row of zeros pi/2 with any other, 0 with another of zeros."""
    return 2 * torch.atan2(torch.linalg.vector_norm(u - v, dim=1), torch.linalg.vector_norm(u + v, dim=1))
