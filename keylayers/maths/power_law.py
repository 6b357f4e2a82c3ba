"""The exponent of a power law in the tail of positive values: Hill's estimator, and where the tail begins."""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def hill_exponent(values: Float[Tensor, " rank"], k: int) -> float:
    """Hill's exponent alpha = 1 + k / sum_{i=1..k} ln(x_i / x_{k+1}) of positive values, largest first; above 1.

    It estimates alpha of values whose density falls as x^-alpha (Hill 1975). Infinite where the k + 1 largest are
    equal, or where there are not more than k.
    """
    if k >= len(values):
        return math.inf
    logarithms = values[: k + 1].double().log()
    total = float((logarithms[:k] - logarithms[k]).sum())
    return 1 + k / total if total > 0 else math.inf


def best_power_law(values: Float[Tensor, " rank"], low: float, high: float) -> float:
    """Exponent of the power law that fits best among those that begin at a value in [low, high]; values as above.

    The tail is every value from that one up, alpha = 1 + n / sum ln(x / start) over all n of them, the start included,
    and the fit is judged by the largest gap between the two distribution functions (Clauset, Shalizi and Newman 2009,
    with the empirical one as i / n, i from 0). Infinite if no tail of two values begins there.
    """
    rising = values.double().flip(0)
    best, gap = math.inf, math.inf
    for start in range(len(rising) - 1):
        if not low <= float(rising[start]) <= high:
            continue
        ratios = rising[start:] / rising[start]
        total, count = float(ratios.log().sum()), len(ratios)
        if total <= 0:
            continue
        alpha = 1 + count / total
        empirical = torch.arange(count, dtype=torch.float64) / count
        found = float((1 - ratios.pow(1 - alpha) - empirical).abs().max())
        if found < gap:
            best, gap = alpha, found
    return best


def most_common(values: Float[Tensor, " rank"], bins: int = 100) -> float:
    """The lower end of the fullest of equal bins of the logarithm, as a value; all values must be positive."""
    logarithms = values.double().log10()
    low, high = float(logarithms.min()), float(logarithms.max())
    fullest = int(torch.histc(logarithms, bins, low, high).argmax())
    return 10 ** (low + (high - low) * fullest / bins)
