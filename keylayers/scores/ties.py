"""Layers that score alike: a draw says which comes first, not their place in the network."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from keylayers.axes import LayerMask, ScoreVector


@dataclass(frozen=True)
class Ties:
    """Scores that some layers of a selection share with some that were left out."""

    chosen: int
    """Layers selected by the draw alone."""
    among: int
    """Layers that it drew from."""
    score: float | None
    """That all of these have; None where there are several such scores."""


def ranked(values: ScoreVector, seed: int) -> Int[np.ndarray, " layers"]:
    """Positions, highest value first; where values tie, in an order drawn with the seed.

    Forward order would favour the beginning of the network wherever many layers score alike, 0 say.
    """
    order = np.argsort(-values, kind="stable")
    if (values[order][1:] != values[order][:-1]).all():
        return order
    return np.lexsort((np.random.default_rng(seed).permutation(len(values)), -values))


def split_ties(values: ScoreVector, mask: LayerMask) -> Ties | None:
    """The ties that a choice runs through; None where layers that score alike were all taken, or all left."""
    split = np.intersect1d(values[mask], values[~mask])
    if split.size == 0:
        return None
    tied = np.isin(values, split)
    return Ties(int((tied & mask).sum()), int(tied.sum()), float(split[0]) if split.size == 1 else None)
