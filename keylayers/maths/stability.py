"""Several sets or p-values at once: stability of more than two selections, and correction for many comparisons."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float

from keylayers.errors import BadInput


@dataclass(frozen=True)
class SetStability:
    """Chance-corrected agreement of several sets (1 = equal, 0 = chance) with its confidence interval."""

    value: float
    low: float
    high: float
    level: float


def set_stability(masks: Bool[np.ndarray, "rankings layers"], level: float = 0.95) -> SetStability:
    """Stability of two or more sets of layers, at most 1, with a confidence interval.

    Nogueira, Sechidis and Brown 2018 (JMLR 18:174): Definition 4 and the asymptotic variance of its estimator. For sets
    of equal size it is the mean of the pairwise Kuncheva indices. The interval is a normal one for many sets: with two
    or three it is only a hint.

    Raises:
        BadInput: for fewer than two sets, or if all are empty or all are everything.
    """
    m = len(masks)
    if m < 2:
        raise BadInput(f"stability compares two or more sets, got {m}")
    chosen = masks.astype(np.float64)
    frequency = chosen.mean(axis=0)
    share = frequency.mean()  # k-bar / d
    room = share * (1 - share)
    if room == 0:
        raise BadInput("every set is empty or every set is everything, so there is no choice whose stability to judge")
    value = 1 - m / (m - 1) * float((frequency * (1 - frequency)).mean()) / room
    shares = chosen.mean(axis=1)  # k_i / d
    influence = (
        (chosen * frequency).mean(axis=1) - shares * share + value / 2 * (2 * share * shares - shares - share + 1)
    ) / room
    sd = 2 / m * math.sqrt(float(((influence - influence.mean()) ** 2).sum()))
    reach = NormalDist().inv_cdf(0.5 + level / 2) * sd
    return SetStability(value, value - reach, min(1.0, value + reach), level)


def holm(p_values: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """p-values adjusted for their number (family-wise error), in [0, 1]. Holm 1979, step-down."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(p_values.size, 0, -1)
    adjusted = np.empty(p_values.size)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def together(p_values: Float[np.ndarray, " tests"]) -> float:
    """One p-value that not all hypotheses hold, however the tests depend on each other, as pairs of rankings do.

    The harmonic mean times e ln(tests) (Vovk and Wang 2020, Proposition 9); of one or two the smallest times their
    number. Not the lesser of both rules: that would reject too often.
    """
    tests = len(p_values)
    smallest = tests * float(p_values.min())
    if tests < 3 or smallest == 0:
        return min(1.0, smallest)
    return min(1.0, math.e * math.log(tests) * tests / float((1 / p_values).sum()))
