"""Principal components of samples from their Gram matrix, and how two sets of them correlate."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_RANK = 1e-10  # eigenvalues below this share of the largest are rounding


def principal_scores(
    gram: Float[np.ndarray, "samples samples"], components: int
) -> Float[np.ndarray, "samples components"]:
    """Scores of samples on their first principal components, each scaled to length 1, from their centred Gram matrix.

    The left singular vectors of the centred samples; fewer where the samples have no more directions. O(samples^3).
    """
    from scipy.linalg import eigh  # here: importing scipy would slow the start of every command

    count = min(components, len(gram))
    values, vectors = eigh(gram, subset_by_index=(len(gram) - count, len(gram) - 1))
    kept = values > _RANK * max(float(values[-1]), np.finfo(np.float64).tiny)
    return vectors[:, kept][:, ::-1]


def canonical_correlations(
    a: Float[np.ndarray, "samples some"], b: Float[np.ndarray, "samples others"]
) -> Float[np.ndarray, " components"]:
    """Canonical correlations of two sets of centred orthonormal columns, in [0, 1], largest first: the singular values
    of their inner products (Bjorck and Golub 1973); as many as the smaller set has columns."""
    return np.linalg.svd(a.T @ b, compute_uv=False).clip(0, 1)


def canonical_table(
    scores: Sequence[Float[np.ndarray, "samples _"]], near: Sequence[Sequence[int]]
) -> Float[np.ndarray, "blocks blocks"]:
    """Mean canonical correlation of the pairs asked for (block, its neighbours); NaN elsewhere."""
    table = np.full((len(scores), len(scores)), np.nan)
    for block, others in enumerate(near):
        for other in others:
            table[block, other] = canonical_correlations(scores[block], scores[other]).mean()
    return table
