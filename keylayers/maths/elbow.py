"""The change point of a curve: where two straight lines fit it better than one."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from keylayers.errors import BadInput

LEAST = 5
"""Points a curve needs: two lines that meet take four parameters, and one residual is left."""


@dataclass(frozen=True)
class Elbow:
    """Where the slope of a curve changes."""

    place: int
    """Index of the point where the two lines meet."""
    confidence: float
    """Posterior weight of this place among all places and no elbow at all, in [0, 1]."""
    no_elbow: float
    """Weight of one straight line, in [0, 1]."""


def find_elbow(curve: Float[np.ndarray, " points"]) -> Elbow:
    """Most likely point where the slope changes, of a curve over equally spaced points.

    Least squares of two lines that meet at an inner point, for every such point, against one line over all. Each fit
    weighs exp(-BIC / 2) with BIC = n log(residual / n) + parameters log n (Schwarz 1978) times its prior: a half for no
    elbow, the other half shared by the places. Weights sum to 1. Residuals below a millionth of the curve's spread
    count as that, or an exact fit would be infinitely sure of itself.

    Raises:
        BadInput: for fewer than five points, or one that is not finite.
    """
    n = len(curve)
    if n < LEAST:
        raise BadInput(f"an elbow needs a curve of at least {LEAST} points, got {n}.")
    if not np.isfinite(curve).all():
        raise BadInput("an elbow needs a curve of finite values.")
    places = np.arange(1, n - 1)
    spread = float(np.square(curve - np.mean(curve)).sum())
    if spread <= (1e-12 * np.abs(curve).max()) ** 2 * n:
        return Elbow(int(places[0]), 0.0, 1.0)
    x = np.arange(n, dtype=np.float64)
    line = np.stack([np.ones(n), x], axis=1)
    bent = [np.column_stack([line, np.maximum(x - place, 0)]) for place in places]
    floor = 1e-12 * spread
    scores = np.array([_bic(curve, design, floor) for design in [line, *bent]])
    prior = np.array([0.5, *np.full(len(places), 0.5 / len(places))])
    weights = prior * np.exp((scores.min() - scores) / 2)
    weights /= weights.sum()
    best = int(np.argmax(weights[1:]))
    return Elbow(int(places[best]), float(weights[1 + best]), float(weights[0]))


def _bic(curve: np.ndarray, design: np.ndarray, floor: float) -> float:
    """Schwarz's criterion of a least-squares fit."""
    fitted = design @ np.linalg.lstsq(design, curve, rcond=None)[0]
    residual = max(float(np.square(curve - fitted).sum()), floor)
    n, parameters = design.shape
    return float(n * np.log(residual / n) + parameters * np.log(n))
