"""Several sets or p-values at once: stability of more than two selections, and correction for many comparisons."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from keylayers.errors import BadInput

FEWEST = 5
"""Sets without which no interval is given: of three, those of Nogueira et al. covered half of what they should."""


@dataclass(frozen=True)
class SetStability:
    """Chance-corrected agreement of several sets (1 = equal, 0 = chance) with its confidence interval."""

    value: float
    low: float | None
    """None, as `high`, for fewer than five sets, and for equal ones, which do not tell how far they vary."""
    high: float | None
    level: float


def set_stability(masks: Bool[np.ndarray, "rankings layers"], level: float = 0.95) -> SetStability:
    """Stability of two or more sets of layers, at most 1, with a confidence interval from five on.

    Nogueira, Sechidis and Brown 2018 (JMLR 18:174), Definition 4. For sets of equal size it is the mean of the pairwise
    Kuncheva indices.

    Raises:
        BadInput: for fewer than two sets, or if all are empty or all are everything.
    """
    # deviates: their interval is a normal one with the asymptotic variance, which covers 71 to 81 % at five sets where
    # 95 % are promised; here Student's over the jackknife's pseudo-values, which covers 94 to 98 %.
    m = len(masks)
    if m < 2:
        raise BadInput(f"stability compares two or more sets, got {m}")
    value = _stability(masks)
    if not math.isfinite(value):
        raise BadInput("every set is empty or every set is everything, so there is no choice whose stability to judge")
    if m < FEWEST:
        return SetStability(value, None, None, level)
    pseudo = np.array([m * value - (m - 1) * _stability(np.delete(masks, out, axis=0)) for out in range(m)])
    error = float(pseudo.std(ddof=1)) / math.sqrt(m)
    if not error > 1e-12:  # not a number, where the sets that are left are all empty
        return SetStability(value, None, None, level)
    from scipy.special import stdtrit  # here: importing scipy would slow the start of every command

    reach = float(stdtrit(m - 1, 0.5 + level / 2)) * error
    return SetStability(value, value - reach, min(1.0, value + reach), level)


def _stability(masks: Bool[np.ndarray, "rankings layers"]) -> float:
    """Not a number where there is no choice."""
    m, frequency = len(masks), masks.mean(axis=0)
    share = frequency.mean()  # k-bar / d
    room = share * (1 - share)
    return 1 - m / (m - 1) * float((frequency * (1 - frequency)).mean()) / room if room > 0 else math.nan


def holm(p_values: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """p-values adjusted for their number (family-wise error), in [0, 1]. Holm 1979, step-down."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(p_values.size, 0, -1)
    adjusted = np.empty(p_values.size)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def harmonic_mean_p(p_values: Float[np.ndarray, " tests"]) -> float:
    """One p-value that not all hypotheses hold, however the tests depend on each other, as pairs of rankings do.

    The harmonic mean times e ln(tests) (Vovk and Wang 2020, Proposition 9); of one or two the smallest times their
    number. Not the lesser of both rules: that would reject too often.
    """
    tests = len(p_values)
    smallest = tests * float(p_values.min())
    if tests < 3 or smallest == 0:
        return min(1.0, smallest)
    return min(1.0, math.e * math.log(tests) * tests / float((1 / p_values).sum()))
