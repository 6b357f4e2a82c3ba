"""Singular values of a weight matrix, quickly and in little memory."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 128
"""Columns that are turned to float64 at a time."""
PANELS = 16
"""Strips of rows of the Gram matrix; what lies below the strips' diagonal is not computed, 15/32 of all."""
FLOOR = 1e-7
"""Share of the largest singular value below which the others are not resolved: about sqrt(eps) of float64, and about
what rounding to float32 has already done to the numbers that are stored."""


def singular_values(matrix: Float[Tensor, "d_out d_in"]) -> Float[Tensor, " rank"]:
    """All min(d_out, d_in) singular values, float64, largest first; those near FLOOR times the largest are noise.

    They are the roots of the eigenvalues of the Gram matrix of the shorter side. Squaring loses half the digits of
    float64, so a value s has an error of about 1e-16 s_1^2 / s: 1e-10 of the largest at s = 1e-6 s_1, where float32
    `svdvals` has one of 1e-6. All NaN for a matrix with an entry that is not finite.
    """
    return roots_of_gram(upper_gram(matrix))


def upper_gram(matrix: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "rank rank"]:
    """Gram matrix of the shorter side in float64; below the strips on its diagonal it is left at 0.

    Memory beside an m x n matrix, m <= n: a float64 square of side m (2 m/n of it in fp32), and m x 128 in float64.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    rows, columns = wide.shape
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=wide.device)
    edges = [rows * panel // PANELS for panel in range(PANELS + 1)]
    for start in range(0, columns, CHUNK):
        part = wide[:, start : start + CHUNK].double()
        for top, bottom in pairwise(edges):
            gram[top:bottom, top:].addmm_(part[top:bottom], part[top:].T)
    return gram


def roots_of_gram(gram: Float[Tensor, "rank rank"]) -> Float[Tensor, " rank"]:
    """Roots of its eigenvalues, largest first; reads the upper triangle. Memory: as much again."""
    if not gram.diagonal().isfinite().all():
        return torch.full_like(gram[0], torch.nan)
    return torch.linalg.eigvalsh(gram, UPLO="U").clamp_min(0).sqrt().flip(0)
