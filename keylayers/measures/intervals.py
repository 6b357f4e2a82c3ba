"""Intervals: how sure a measured number is, and the smallest difference a study could have seen."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from keylayers.errors import BadInput

_ROUNDING = 1e-12  # of the values: below it, differences are equal
_NODES = 10_000  # of the quadrature behind a detectable difference: six digits at one degree of freedom


@dataclass(frozen=True)
class Interval:
    """An estimate and a confidence interval around it."""

    estimate: float
    low: float
    high: float
    level: float = 0.95
    """Share of repetitions whose interval would hold the true value."""

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class PairedDifference:
    """How two arms differ over the same seeds."""

    interval: Interval
    """Mean of first minus second, with its t-interval."""
    p_value: float
    """Two-sided paired t-test of no difference; where all differences are equal, the sign test's."""
    detectable: float
    """Smallest true difference that this many seeds, this variable, would have shown with power 0.8; 0 where all
    differences are equal, which tells nothing of it."""
    pairs: int


def t_interval(values: Sequence[float] | Float[np.ndarray, " repeats"], *, level: float = 0.95) -> Interval:
    """Mean of independent repeats (seeds) with Student's interval. Raises BadInput for fewer than two or non-finite."""
    from scipy import stats

    sample = _sample(values, level)
    mean, error = float(sample.mean()), float(sample.std(ddof=1)) / math.sqrt(len(sample))
    half = float(stats.t.ppf(0.5 + level / 2, len(sample) - 1)) * error
    return Interval(mean, mean - half, mean + half, level)


def jackknife(values: Sequence[float], members: Sequence[Sequence[Hashable]], *, level: float = 0.95) -> Interval:
    """Mean of measurements that share repeats, such as all pairs of seeds, with an interval that knows it.

    `members` says which repeats each value belongs to. Leaving out one of n repeats with all its values gives a pseudo-
    value n mean - (n - 1) mean_left; the interval is Student's over these (Arvesen 1969, on U-statistics). It is
    unbounded where a repeat has all values or there is only one.
    """
    sample, everyone = np.asarray(values, dtype=float), list(dict.fromkeys(one for some in members for one in some))
    mean, count = float(sample.mean()), len(everyone)
    pseudo = []
    for one in everyone:
        left = sample[[one not in some for some in members]]
        if not len(left) or count < 2:
            return Interval(mean, -math.inf, math.inf, level)
        pseudo.append(count * mean - (count - 1) * float(left.mean()))
    found = t_interval(pseudo, level=level)
    half = (found.high - found.low) / 2
    return Interval(mean, mean - half, mean + half, level)


def paired_difference(
    first: Sequence[float] | Float[np.ndarray, " repeats"],
    second: Sequence[float] | Float[np.ndarray, " repeats"],
    *,
    level: float = 0.95,
    power: float = 0.8,
) -> PairedDifference:
    """Difference of two arms measured under the same seeds, seed by seed.

    Pairing removes what the seed does to both arms. Raises BadInput unless both have the same number, at least two.
    """
    from scipy import stats

    if len(first) != len(second):
        raise BadInput(
            f"{len(first)} and {len(second)} values cannot be paired; measure both arms under the same seeds"
        )
    differences = _sample(np.asarray(first, dtype=float) - np.asarray(second, dtype=float), level)
    interval, spread = t_interval(differences, level=level), float(differences.std(ddof=1))
    # shares of images differ in their last bit where they are equal, and a spread of rounding makes anything certain
    tiny = _ROUNDING * float(np.abs(np.asarray([first, second])).max())
    if spread > tiny:
        statistic = interval.estimate / (spread / math.sqrt(len(differences)))
        p_value = float(2 * stats.t.sf(abs(statistic), len(differences) - 1))
    else:
        # equal differences tell nothing of their spread: no more than all of one sign, the sign test's least p
        spread, p_value = 0.0, 1.0 if abs(interval.estimate) <= tiny else 2.0 ** (1 - len(differences))
    detectable = detectable_difference(spread, len(differences), alpha=1 - level, power=power)
    return PairedDifference(interval, p_value, detectable, len(differences))


def detectable_difference(spread: float, pairs: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest true mean difference that a two-sided paired t-test at `alpha` finds with the given power.

    `spread` is the standard deviation of the paired differences. Solved on the distribution of t under a shift, so it
    is right for few seeds; for many it tends to (z_{1-alpha/2} + z_{power}) spread / sqrt(pairs).
    """
    from scipy import optimize, special, stats

    if pairs < 2:
        raise BadInput(f"{pairs} pairs: a detectable difference needs at least 2 seeds")
    freedom = pairs - 1
    # Quantile midpoints of the estimated spread over the true one; scipy's own noncentral t is NaN at one degree.
    nodes = np.sqrt(stats.chi2.ppf((np.arange(_NODES) + 0.5) / _NODES, freedom) / freedom)
    threshold = float(stats.t.ppf(1 - alpha / 2, freedom)) * nodes

    def shortfall(shift: float) -> float:
        return float((special.ndtr(shift - threshold) + special.ndtr(-shift - threshold)).mean()) - power

    upper = 4.0
    while shortfall(upper) < 0:
        upper *= 2
    shift = float(optimize.brentq(shortfall, 0.0, upper, xtol=1e-9))
    return shift * spread / math.sqrt(pairs)


def paired_bootstrap(
    first: Float[np.ndarray, " samples"],
    second: Float[np.ndarray, " samples"],
    tokens: Int[np.ndarray, " samples"],
    *,
    level: float = 0.95,
    resamples: int = 4999,
    seed: int = 0,
) -> Interval:
    """Difference of two token-weighted losses, first minus second, on the same examples, in nats per token.

    `first` and `second` are summed nats per example (`ExampleLosses.nats`), `tokens` their common token counts.
    Examples are resampled whole, as they are the independent units; bias-corrected and accelerated (Efron 1987).

    Raises:
        BadInput: unless all are of one length, at least two, and finite.
    """
    from scipy import stats

    if not len(first) == len(second) == len(tokens):
        raise BadInput(f"{len(first)}, {len(second)} and {len(tokens)} examples: expected the same examples in each")
    differences = _sample(np.asarray(first, dtype=float) - np.asarray(second, dtype=float), level)
    weights = np.asarray(tokens, dtype=float)
    if not weights.min() >= 0 or weights.sum() == 0:
        raise BadInput("token counts must be at least 0, and one above it")
    estimate = float(differences.sum() / weights.sum())
    if np.allclose(differences, estimate * weights, rtol=1e-12, atol=1e-15):  # every resample gives the same value
        return Interval(estimate, estimate, estimate, level)

    def ratio(nats: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray | np.floating:
        return nats.sum(axis=axis) / counts.sum(axis=axis)

    result = stats.bootstrap(
        (differences, weights),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2**22 // len(weights)),
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    low, high = map(float, result.confidence_interval)
    return Interval(estimate, low, high, level)


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> Interval:
    """A proportion in [0, 1] with Wilson's score interval, which is right also near 0 and 1 (Wilson 1927)."""
    from scipy import stats

    if not 0 <= successes <= trials or trials == 0:
        raise BadInput(f"{successes} of {trials}: expected at least one trial and no more successes than trials")
    z = float(stats.norm.ppf(0.5 + level / 2))
    share = successes / trials
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), level)


def _sample(values: Sequence[float] | np.ndarray, level: float) -> Float[np.ndarray, " repeats"]:
    sample = np.asarray(values, dtype=float)
    if not 0 < level < 1:
        raise BadInput(f"level={level}: expected a confidence level between 0 and 1, such as 0.95")
    if sample.ndim != 1 or len(sample) < 2:
        raise BadInput(f"an interval needs at least two values, got {sample.size}; repeat under more seeds")
    if not np.isfinite(sample).all():
        raise BadInput(f"value {int((~np.isfinite(sample)).argmax())} is not finite; its run diverged")
    return sample
