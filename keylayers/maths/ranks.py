"""Agreement of two rankings: Spearman, Kendall tau-b, rank-biased overlap, each with what chance gives."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from keylayers.axes import ScoreVector
from keylayers.errors import BadInput


@dataclass(frozen=True)
class Correlation:
    """A rank correlation in [-1, 1], its two-sided p-value and its standard deviation under independence."""

    value: float
    p_value: float
    null_sd: float


def average_ranks(values: ScoreVector) -> Float[np.ndarray, " layers"]:
    """Ranks 1..n ascending; ties share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(a: ScoreVector, b: ScoreVector) -> Correlation:
    """Spearman's rank correlation with average ranks for ties.

    The p-value is two-sided from Student's t on n - 2 degrees of freedom, never below 2 / n!, the chance of a perfect
    order; under independence the standard deviation is exactly 1 / sqrt(n - 1).

    Raises:
        BadInput: for fewer than two layers, unequal lengths, or a constant side, which has no order.
    """
    n = _paired(a, b)
    first, second = (ranks - ranks.mean() for ranks in (average_ranks(a), average_ranks(b)))
    value = float(first @ second / math.sqrt((first @ first) * (second @ second)))
    value = max(-1.0, min(1.0, value))
    return Correlation(value, _student_p(value, n), 1 / math.sqrt(n - 1))


def _student_p(correlation: float, n: int) -> float:
    from scipy.special import stdtr  # here: importing scipy would slow the start of every command

    perfect = 2 * math.exp(-math.lgamma(n + 1))
    spread = (1 - correlation) * (1 + correlation)
    if n == 2 or spread <= 0:
        return min(1.0, perfect)
    t = abs(correlation) * math.sqrt((n - 2) / spread)
    return min(1.0, max(perfect, 2 * float(stdtr(n - 2, -t))))


def kendall_tau(a: ScoreVector, b: ScoreVector) -> float:
    """Kendall's tau-b, in [-1, 1]: (concordant - discordant) pairs over the geometric mean of untied pairs.

    Kendall 1945. O(n^2) time in slices, O(n) memory. Raises BadInput as `spearman` does.
    """
    n = _paired(a, b)
    concordance = untied_a = untied_b = 0
    for start in range(0, n, 256):
        order_a = np.sign(a[start : start + 256, None] - a)
        order_b = np.sign(b[start : start + 256, None] - b)
        concordance += int((order_a * order_b).sum())
        untied_a += int(np.count_nonzero(order_a))
        untied_b += int(np.count_nonzero(order_b))
    return concordance / math.sqrt(untied_a * untied_b)


def rank_biased_overlap(a: Int[np.ndarray, " layers"], b: Int[np.ndarray, " layers"], p: float = 0.9) -> float:
    """Top-weighted overlap of two full rankings (positions of the layers, best first), in [0, 1]; 1 = same order.

    Webber, Moffat and Zobel 2010, Eq. 30 (extrapolated form for lists of equal length k):
    RBO = (X_k / k) p^k + (1 - p)/p * sum over d of (X_d / d) p^d, X_d = layers shared by the first d of each. A smaller
    p looks less deep: with p = 0.9 the first ten ranks carry about 86 % of the weight.

    Raises:
        BadInput: unless both are permutations of 0..n-1 and 0 < p < 1.
    """
    n = len(a)
    everything = np.arange(n)
    if n == 0 or not all(np.array_equal(np.sort(order), everything) for order in (a, b)):
        raise BadInput("rank-biased overlap compares two full rankings: permutations of the same layers 0..n-1")
    entered = np.maximum(np.argsort(a), np.argsort(b))  # depth - 1 at which a layer is in both prefixes
    shared = np.cumsum(np.bincount(entered, minlength=n))
    return _biased_mean(shared / (everything + 1), p)


def expected_rank_biased_overlap(n: int, p: float = 0.9) -> float:
    """Chance level of the rank-biased overlap of two independent random rankings of n layers; exact (E X_d = d^2/n)."""
    return _biased_mean(np.arange(1, n + 1) / n, p)


def _biased_mean(agreement: Float[np.ndarray, " depth"], p: float) -> float:
    """Eq. 30 from the agreements X_d / d at depths 1..k."""
    if not 0 < p < 1:
        raise BadInput(f"the persistence of rank-biased overlap must lie strictly between 0 and 1, got {p}")
    weights = p ** np.arange(1, agreement.size + 1)
    return float(agreement[-1] * weights[-1] + (1 - p) / p * (weights @ agreement))


def _paired(a: ScoreVector, b: ScoreVector) -> int:
    """Number of layers; raises BadInput unless both sides rank them."""
    if a.shape != b.shape or a.size < 2:
        raise BadInput(f"a rank correlation needs two equally long rankings of 2 or more, got {a.size} and {b.size}")
    for name, side in (("first", a), ("second", b)):
        if (side == side[0]).all():
            raise BadInput(f"all values on the {name} side are equal ({side[0]:g}), so they rank nothing")
    return a.size
