"""Losses and attributions split over groups of batches, so that every delta criterion carries an interval."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from keylayers.measures.objective import supervised

GROUPS = 8
"""Most groups the calibration batches are split into; each is one repeat behind an interval."""


def fitting_size(records: int, most: int) -> int:
    """Records per batch, at most so many and so few that there are as many batches as groups, as far as they go."""
    return max(1, min(most, records // GROUPS))


def groups_of(batches: int) -> list[list[int]]:
    """Batch indices dealt round robin into at most GROUPS groups."""
    count = min(GROUPS, batches)
    return [list(range(start, batches, count)) for start in range(count)]


def per_token(
    sums: Float[np.ndarray, "batches layers"], terms: Sequence[int]
) -> tuple[Float[np.ndarray, " layers"], Float[np.ndarray, "repeats layers"] | None]:
    """Sums over batches divided by their tokens: over all batches, and within each group where there are two or more.

    Raises:
        BadInput: if no batch has a supervised token.
    """
    counts = np.asarray(terms, dtype=np.float64)
    supervised(int(counts.sum()))
    total = sums.sum(0) / counts.sum()
    groups = [group for group in groups_of(len(terms)) if counts[group].sum() > 0]
    repeats = np.stack([sums[group].sum(0) / counts[group].sum() for group in groups])
    return total, repeats if len(groups) > 1 else None
