"""Change points of the representation: blocks whose output has little to do with their neighbours' (low CKA)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence
from keylayers.criteria.support.hidden_states import HiddenStates, Position, Side
from keylayers.criteria.support.observers import Blocks, Observed, Observer, observing
from keylayers.criteria.support.pooled import Rows, jackknife_bounds, mean_over
from keylayers.criteria.support.spans import Odd, check_odd
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.maths.cka import LEAST, Estimator, Kernel, MinibatchCka, grams, table_of_grams

Variant = Literal["neighbours", "input", "released"]
GROUP = 256
"""Tokens that are compared with each other at a time where all tokens count."""


@dataclass(frozen=True)
class CkaShift(CriterionSettings):
    """Settings of `cka_shift`."""

    window: Odd = 3
    """Odd number of blocks around a block, itself included: 3 are its two neighbours."""
    variant: Variant = "neighbours"
    """Compared with the neighbours' outputs; with the block's own input; or, as released, with itself included."""
    position: Position = "prompt"
    """The last token of the prompt as published; last, mean, or all tokens."""
    kernel: Kernel = "linear"
    """Or rbf, with the median distance as its width."""
    estimator: Estimator = "unbiased"
    """Or biased as published, which tends to 1 where the model is wider than there are records."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_odd(self)
        if self.position == "all" and self.estimator == "biased":
            raise BadInput(
                "the biased CKA of all tokens depends on how they are grouped",
                "give `settings.estimator=unbiased`",
                "give `settings.position=last`",
            )


def _fits(layers: Sequence[Layer], settings: CkaShift, batches: int) -> None:
    if len(layers) < 2 and settings.variant == "neighbours":
        raise BadInput(
            "cka_shift compares a block with its neighbours, and there is one block", "give `settings.variant=input`"
        )


@observing(settings=CkaShift, fits=_fits)
def score_cka_shift(evidence: Evidence, blocks: Blocks, settings: CkaShift) -> Observer:
    """1 - mean CKA of a block's output with its neighbours', in [0, 1] if biased, [0, 2] if not; high = change point.

    The paper's delta (Liu et al. 2025, average CKA with neighbours) is low at critical layers; this is 1 - delta, so
    high is critical. Neighbours outside the network, or in another stack, are left out. `input` compares a block with
    what enters it: 0 where it is the identity, a rotation or a scale. `released` averages over the window with the
    block itself, which counts a third inside and half at the ends (window 3): the last blocks look less critical there.
    Memory: one row per record and block and one Gram matrix per block; with all tokens one of 256 tokens at a time
    (Nguyen et al. 2021), whose estimate changes slightly with the order of the records.

    Raises:
        BadInput: for a window that is even, fewer than 4 records (biased: 2), or a block the same for all of them.
    """
    # deviates: the released code counts a layer's CKA with itself, 1; here left out, because it hides the ends.
    # deviates: the paper's estimator is biased; here HSIC_1, because the bias grows with width over records.
    _fits(blocks.layers, settings, 1)
    return TokenShift(blocks, settings) if settings.position == "all" else RowShift(blocks, settings)


def _sides(settings: CkaShift) -> tuple[Side, ...]:
    """States compared: what leaves each block, and before those, where it is asked for, what enters each."""
    return ("before", "after") if settings.variant == "input" else ("after",)


def shifts(
    blocks: Blocks, settings: CkaShift, table: Float[np.ndarray, "states states"]
) -> Float[np.ndarray, " blocks"]:
    """The scores from the CKA of all pairs of states."""
    count = len(blocks.layers)
    if settings.variant == "input":
        return 1 - table[np.arange(count), np.arange(count, 2 * count)]
    near = [blocks.neighbours(block, settings.window // 2) for block in range(count)]
    if settings.variant == "released":
        near = [[*others, block] for block, others in enumerate(near)]
    return 1 - mean_over(near, table)


class RowShift:
    """One row per record and state, compared at the end."""

    def __init__(self, blocks: Blocks, settings: CkaShift) -> None:
        self.blocks, self.settings = blocks, settings
        self.rows = [Rows(blocks, side, settings.position) for side in _sides(settings)]

    def observe(self, seen: HiddenStates) -> None:
        for rows in self.rows:
            rows.observe(seen)

    def finish(self) -> Observed:
        made = grams([state for rows in self.rows for state in rows.finish()], kernel=self.settings.kernel)
        estimator, samples = self.settings.estimator, made.shape[-1]

        def values(kept: Int[Tensor, " kept"]) -> Float[np.ndarray, " blocks"]:
            return shifts(
                self.blocks, self.settings, table_of_grams(made[:, kept][:, :, kept], estimator=estimator).numpy()
            )

        found = values(torch.arange(samples))
        return Observed(found, bounds=jackknife_bounds(found, samples, LEAST[estimator], values))


class TokenShift:
    """All tokens, compared in groups as they come."""

    def __init__(self, blocks: Blocks, settings: CkaShift) -> None:
        self.blocks, self.settings = blocks, settings
        count, stacks = len(blocks.layers), sorted(set(blocks.stacks))  # an encoder's tokens are not the decoder's
        self.members = [[block for block in range(count) if blocks.stacks[block] == stack] for stack in stacks]
        self.groups = [Groups(settings.kernel) for _ in stacks]

    def observe(self, seen: HiddenStates) -> None:
        for members, group in zip(self.members, self.groups, strict=True):
            group.add([seen.rows(block, side, "all") for side in _sides(self.settings) for block in members])

    def finish(self) -> Observed:
        count, sides = len(self.blocks.layers), len(_sides(self.settings))
        table = np.full((sides * count, sides * count), np.nan)
        for members, group in zip(self.members, self.groups, strict=True):
            places = [side * count + block for side in range(sides) for block in members]
            table[np.ix_(places, places)] = group.finish().cpu().numpy()
        return Observed(shifts(self.blocks, self.settings, table))


class Groups:
    """Tokens gathered into groups of one size, whatever the batches were."""

    def __init__(self, kernel: Kernel) -> None:
        self._cka = MinibatchCka(kernel=kernel)
        self._waiting: list[Tensor] = []

    def add(self, states: Sequence[Tensor]) -> None:
        """The same tokens in each state."""
        joined = [torch.cat(pair) for pair in zip(self._waiting, states, strict=True)] if self._waiting else [*states]
        whole = len(joined[0]) // GROUP * GROUP
        for start in range(0, whole, GROUP):
            self._cka.add([state[start : start + GROUP] for state in joined])
        self._waiting = [state[whole:].clone() for state in joined]

    def finish(self) -> Float[Tensor, "states states"]:
        """The table over all tokens; a last group of fewer than four is left out."""
        if self._waiting and len(self._waiting[0]) >= LEAST["unbiased"]:
            self._cka.add(self._waiting)
        self._waiting = []
        return self._cka.table()
