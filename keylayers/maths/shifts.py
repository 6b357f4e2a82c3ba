"""Rank correlations of profiles along the blocks against shifts: smooth curves correlate by chance, shifted or not."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float

from keylayers.errors import BadInput
from keylayers.maths.ranks import average_ranks

Profile = Float[np.ndarray, " blocks"]
MOST = 5_000_000
"""Combinations of shifts that are still counted one by one."""


@dataclass(frozen=True)
class ShiftTest:
    """A correlation in [-1, 1] and where it lies among those of circularly shifted profiles."""

    value: float
    p_high: float
    """Share of the shifts, none included, whose correlation is at least as high."""
    p_low: float
    """At least as low."""
    smallest_p: float
    """1 / number of shifts: below it no p-value can fall, whatever the profiles."""
    needed: float
    """Least correlation, of those of the shifts, whose `p_high` is below 0.05; infinite where none is, as with 20
    shifts or fewer."""
    needed_two_sided: float
    """Size from which a correlation of either sign is below 0.05 two-sided; infinite likewise, as with 40 or fewer."""

    @property
    def two_sided(self) -> float:
        """Twice the smaller share, at most 1."""
        return min(1.0, 2 * min(self.p_high, self.p_low))


def shifted_correlations(a: Profile, b: Profile) -> Float[np.ndarray, " blocks"]:
    """Spearman's correlation of a with b moved circularly by 0, 1, ... blocks.

    Raises:
        BadInput: for other than two equally long profiles of 3 or more blocks, or one that is constant.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) < 3:
        raise BadInput(f"shifts need two profiles over the same 3 or more blocks, got {a.shape} and {b.shape}.")
    ranks = [average_ranks(one) - (len(a) + 1) / 2 for one in (a, b)]
    sizes = [float(one @ one) for one in ranks]
    if not all(sizes):
        raise BadInput("a profile is the same at every block, so it ranks nothing.")
    products = [float(ranks[0] @ np.roll(ranks[1], shift)) for shift in range(len(a))]
    return np.clip(np.array(products) / np.sqrt(sizes[0] * sizes[1]), -1, 1)


def shift_test(a: Profile, others: Sequence[Profile]) -> ShiftTest:
    """Mean Spearman correlation of one profile with several, which all move together: one shift for all.

    Right where the others are of one model and so alike that shifting each by itself would count them as independent.
    """
    return _tested(np.mean([shifted_correlations(a, other) for other in others], axis=0))


def pooled_test(tables: Sequence[Float[np.ndarray, " blocks"]]) -> ShiftTest:
    """The mean of several models' correlations, each shifted by itself: models trained apart are independent.

    `tables`: per model what its correlation is at each shift; all combinations are counted.
    """
    _admit([len(table) for table in tables])
    sums = np.zeros(1)
    for table in tables:
        sums = (sums[:, None] + table).ravel()
    return _tested(sums / len(tables))


def agreement_test(profiles: Sequence[Profile]) -> ShiftTest:
    """Mean Spearman correlation over all pairs of profiles, each shifted by itself against the first.

    Raises:
        BadInput: for fewer than two, or more shifts than can be counted.
    """
    if len(profiles) < 2:
        raise BadInput(f"agreement needs two or more profiles, got {len(profiles)}.")
    blocks = len(profiles[0])
    _admit([blocks] * (len(profiles) - 1))
    places = np.indices((blocks,) * (len(profiles) - 1), dtype=np.int16).reshape(len(profiles) - 1, -1)
    moved = np.concatenate([np.zeros_like(places[:1]), places])
    pairs = list(combinations(range(len(profiles)), 2))
    total = np.zeros(moved.shape[1])
    for first, second in pairs:
        total += shifted_correlations(profiles[first], profiles[second])[(moved[second] - moved[first]) % blocks]
    return _tested(total / len(pairs))


def _tested(values: Float[np.ndarray, " shifts"]) -> ShiftTest:
    """The first value is that of no shift."""
    rounded = np.round(values, 12)  # ties between shifts differ in the last bits
    return ShiftTest(
        float(values[0]),
        float(np.mean(rounded >= rounded[0])),
        float(np.mean(rounded <= rounded[0])),
        1 / len(values),
        _least(rounded, 0.05),
        max(_least(rounded, 0.025), _least(-rounded, 0.025)),
    )


def _least(values: Float[np.ndarray, " shifts"], share: float) -> float:
    """The least value that less than a share of the values reach; infinite without one."""
    different, counts = np.unique(values, return_counts=True)
    reach = counts[::-1].cumsum()[::-1] / len(values)
    return float(different[reach < share].min(initial=np.inf))


def _admit(sizes: Sequence[int]) -> None:
    if float(np.prod([float(size) for size in sizes])) > MOST:
        raise BadInput(f"{len(sizes)} profiles of {max(sizes)} blocks have more than {MOST:,} shifts; give fewer.")
