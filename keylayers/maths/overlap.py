"""Overlap of two sets of layers, and how much of it is chance: exact laws of the shared count, Jaccard, Kuncheva."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from keylayers.axes import LayerMask
from keylayers.errors import BadInput


@dataclass(frozen=True, eq=False)
class OverlapLaw:
    """Exact law of X, the number of layers that two sets share, under some null hypothesis."""

    size_a: int
    size_b: int
    counts: Int[np.ndarray, " support"]
    """Attainable values of X, ascending."""
    probabilities: Float[np.ndarray, " support"]

    @property
    def jaccards(self) -> Float[np.ndarray, " support"]:
        """Jaccard index of each attainable count, in [0, 1]."""
        return self.counts / (self.size_a + self.size_b - self.counts)

    @property
    def expected_jaccard(self) -> float:
        """Mean Jaccard index under the null: its chance level, in [0, 1]."""
        return float(self.probabilities @ self.jaccards)

    @property
    def sd_jaccard(self) -> float:
        """Standard deviation of the Jaccard index under the null."""
        centred = self.jaccards - self.expected_jaccard
        return math.sqrt(float(self.probabilities @ centred**2))

    @property
    def minimum_jaccard(self) -> float:
        """Smallest attainable Jaccard index."""
        return float(self.jaccards[0])

    @property
    def smallest_p(self) -> float:
        """Smallest attainable p-value: the probability of the largest attainable count."""
        return float(self.probabilities[-1])

    def p_value(self, shared: int) -> float:
        """P(X >= shared): the chance of an overlap at least as large, in [0, 1]."""
        return min(1.0, float(self.probabilities[self.counts >= shared].sum()))

    def critical_jaccard(self, level: float) -> float | None:
        """Smallest Jaccard index with P(X >= x) <= level; None where no overlap is that rare."""
        tails = np.cumsum(self.probabilities[::-1])[::-1]
        rare = np.flatnonzero(tails <= level)
        return float(self.jaccards[rare[0]]) if rare.size else None


def overlap_law(
    size_a: int, size_b: int, counts: Int[np.ndarray, " x"], probabilities: Float[np.ndarray, " x"]
) -> OverlapLaw:
    """The law with its probabilities scaled to sum to 1. Raises BadInput for two empty sets: nothing can overlap."""
    if size_a + size_b == 0:
        raise BadInput("two empty sets have no Jaccard index; compare sets with at least one layer")
    return OverlapLaw(size_a, size_b, counts, probabilities / probabilities.sum())


def hypergeometric(n: int, k: int, l: int) -> tuple[Int[np.ndarray, " x"], Float[np.ndarray, " x"]]:  # noqa: E741
    """Shared counts of two random subsets of sizes k and l of n, and their probabilities (not renormalised)."""
    if not (0 <= k <= n and 0 <= l <= n):
        raise BadInput(f"subset sizes {k} and {l} must lie in 0..{n}, the number of layers")
    counts = np.arange(max(0, k + l - n), min(k, l) + 1)

    def log_factorial(values: Int[np.ndarray, " x"]) -> Float[np.ndarray, " x"]:
        return np.array([math.lgamma(value + 1) for value in values.tolist()])

    ways = log_factorial(counts) + log_factorial(k - counts) + log_factorial(l - counts)
    ways += log_factorial(n - k - l + counts)
    total = log_factorial(np.array([k, l, n - k, n - l])).sum() - math.lgamma(n + 1)
    return counts, np.exp(total - ways)


def random_overlap_law(n: int, k: int, l: int | None = None) -> OverlapLaw:  # noqa: E741
    """Law of the overlap of two uniformly random subsets of sizes k and l (k where omitted) of n layers.

    X is hypergeometric: E X = k l / n. For n=225, k=l=169 the expected Jaccard index is 0.6017, not 0.
    """
    other = k if l is None else l
    return overlap_law(k, other, *hypergeometric(n, k, other))


def expected_jaccard(n: int, k: int, l: int | None = None) -> float:  # noqa: E741
    """Chance level of the Jaccard index of two random subsets of sizes k and l of n, in [0, 1]; exact."""
    return random_overlap_law(n, k, l).expected_jaccard


def jaccard(a: LayerMask, b: LayerMask) -> float:
    """Shared members over all members of two sets, in [0, 1]. Raises BadInput where both are empty."""
    union = int((a | b).sum())
    if union == 0:
        raise BadInput("two empty sets have no Jaccard index; compare sets with at least one layer")
    return int((a & b).sum()) / union


def kuncheva_index(n: int, k: int, l: int, shared: int) -> float:  # noqa: E741
    """Overlap corrected for chance: 1 for equal sets, 0 at the chance level, >= -1.

    Kuncheva 2007, (r - k^2/n) / (k - k^2/n), which is Cohen's kappa and the same for the complements; unequal sizes,
    which it leaves undefined, are given Cohen's kappa, (r - k l/n) / ((k + l)/2 - k l/n).

    Raises:
        BadInput: if both sets are empty or both are everything: there is no choice to agree upon.
    """
    chance = k * l / n
    room = (k + l) / 2 - chance
    if room <= 0:
        raise BadInput(f"sets of {k} and {l} out of {n} leave no choice; the Kuncheva index is undefined")
    return (shared - chance) / room
