"""Split conformal thresholds: at most a share alpha of clean inputs is flagged, for any number of them that were seen.

n calibration scores and one more, exchangeable: each is equally likely to be the i-th largest of the n + 1. Flagging
what exceeds the k-th smallest calibration score, k = n + 1 - floor(alpha (n + 1)), flags it with probability at most
floor(alpha (n + 1)) / (n + 1) <= alpha (Vovk, Gammerman and Shafer 2005, section 4.1). It is an average over
calibration sets: the rate of one set, over many inputs, scatters around it as Beta(n + 1 - k, k).
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from keylayers.errors import BadInput


def calibration_needed(alpha: float) -> int:
    """Fewest calibration scores with which anything may be flagged at this rate: 19 at 5 %, 99 at 1 %.

    Raises:
        BadInput: unless alpha lies between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise BadInput(f"alpha={alpha}: expected a share of clean inputs that may be flagged, between 0 and 1.")
    count = max(1, math.ceil(1 / alpha) - 2)
    while _allowed(count, alpha) < 1:
        count += 1
    return count


def conformal_threshold(scores: Sequence[float] | Float[np.ndarray, " samples"], alpha: float) -> float:
    """Flag what is above it: at most a share `alpha` of inputs exchangeable with those of the scores.

    Ties count as not flagged, so the bound holds for any distribution.

    Raises:
        BadInput: for too few scores for this alpha, with how many are needed, or one that is not finite.
    """
    sample, needed = np.asarray(scores, dtype=float), calibration_needed(alpha)
    if sample.ndim != 1 or not np.isfinite(sample).all():
        raise BadInput("calibration scores must be one finite number per input.")
    if len(sample) < needed:
        raise BadInput(
            f"{len(sample)} calibration inputs cannot give a threshold that flags at most {alpha:.3g} of clean ones; "
            f"{needed} are needed, or a larger alpha."
        )
    return float(np.sort(sample)[len(sample) - _allowed(len(sample), alpha)])


def bound(count: int, alpha: float) -> float:
    """The rate that is promised for that many calibration scores, at most alpha; exact where scores have no ties."""
    return _allowed(count, alpha) / (count + 1)


def _allowed(count: int, alpha: float) -> int:
    """How many of `count` + 1 exchangeable inputs may be flagged."""
    return math.floor(alpha * (count + 1) * (1 + 1e-12))  # 0.07 * 100 is 7, whatever rounding makes of it
