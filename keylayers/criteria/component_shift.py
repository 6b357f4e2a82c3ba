"""Change points of the strongest directions: blocks whose top components correlate little with their neighbours'."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence
from keylayers.criteria.support.hidden_states import HiddenStates, Position
from keylayers.criteria.support.observers import Blocks, Observed, observing
from keylayers.criteria.support.pooled import Rows, jackknife_bounds, mean_over
from keylayers.criteria.support.spans import Odd, check_odd
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.maths.cka import centred, grams
from keylayers.maths.components import canonical_table, principal_scores
from keylayers.settings import Count


@dataclass(frozen=True)
class ComponentShift(CriterionSettings):
    """Settings of `component_shift`."""

    components: Count = 3
    """Principal components compared."""
    window: Odd = 3
    """Odd number of blocks around a block, itself included; the released code compares with two on each side: 5."""
    position: Position = "prompt"
    """The last token of the prompt as published; last or mean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_odd(self)
        if self.position == "all":
            raise BadInput(
                "component_shift keeps every row it compares, so not all tokens",
                "give `settings.position=prompt`",
                "give `settings.position=mean`",
            )


def _fits(layers: Sequence[Layer], settings: ComponentShift, batches: int) -> None:
    if len(layers) < 2:
        raise BadInput("component_shift compares a block with its neighbours, and there is one block.")


@observing(settings=ComponentShift, fits=_fits)
def score_component_shift(evidence: Evidence, blocks: Blocks, settings: ComponentShift) -> "Shift":
    """1 - mean canonical correlation of a block's top principal components with its neighbours', in [0, 1].

    Liu et al. 2025 (spectral analysis): the scores of the samples on the first components of two blocks are compared by
    CCA; canonical correlations are the cosines between the spaces those scores span, so no iteration is needed. High =
    change point = critical. Neighbours outside the network or in another stack are left out, where the released code
    leaves out the two blocks at each end. Memory: one row per record and block, one Gram matrix per block.

    Raises:
        BadInput: for an even window, all tokens, or records so few that every set of components spans them all.
    """
    _fits(blocks.layers, settings, 1)
    return Shift(blocks, settings)


class Shift:
    """One row per record and block, compared at the end."""

    def __init__(self, blocks: Blocks, settings: ComponentShift) -> None:
        self.blocks, self.settings = blocks, settings
        self.rows = Rows(blocks, "after", settings.position)
        self.near = [blocks.neighbours(block, settings.window // 2) for block in range(len(blocks.layers))]

    def observe(self, seen: HiddenStates) -> None:
        self.rows.observe(seen)

    def finish(self) -> Observed:
        made = grams(self.rows.finish())
        samples, least = made.shape[-1], self.settings.components + 2
        if samples < least:
            raise BadInput(
                f"component_shift compares {self.settings.components} components over {samples} records, which they "
                f"span whatever they hold; give at least {least} records or set components lower."
            )

        def values(kept: Int[Tensor, " kept"]) -> Float[np.ndarray, " blocks"]:
            scores = [
                principal_scores(one, self.settings.components)
                for one in centred(made[:, kept][:, :, kept], "biased").numpy()
            ]
            return 1 - mean_over(self.near, canonical_table(scores, self.near))

        found = values(torch.arange(samples))
        return Observed(found, bounds=jackknife_bounds(found, samples, least, values))
