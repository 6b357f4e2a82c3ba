"""The singular values of pure noise (Marchenko and Pastur 1967): their median, their largest, and the noise's scale."""

import math
from functools import lru_cache

from scipy.integrate import quad
from scipy.optimize import brentq

TRACY_WIDOM = {0.05: 0.9793, 0.01: 2.0234, 0.001: 3.2724}
"""Chance -> what the scaled largest eigenvalue of real noise exceeds with that chance (Tracy-Widom law, beta 1)."""


@lru_cache(maxsize=256)
def noise_median(aspect: float) -> float:
    """Median eigenvalue of X X^T / n for an m x n matrix X of independent entries of variance 1, in (0, 1].

    `aspect` = m / n in (0, 1]. The law is that of x = 1 + a + 2 sqrt(a) cos(t) with density
    2 sin(t)^2 / (pi x) on t in (0, pi), which is smooth even at a = 1, where that of x has a pole.
    """
    assert 0 < aspect <= 1, aspect

    def place(angle: float) -> float:
        return 1 + aspect + 2 * math.sqrt(aspect) * math.cos(angle)

    def density(angle: float) -> float:
        return 2 * math.sin(angle) ** 2 / (math.pi * max(place(angle), 1e-300))

    def above(angle: float) -> float:
        return quad(density, 0, angle, epsabs=1e-12)[0] - 0.5

    return place(brentq(above, 0, math.pi, xtol=1e-12))


def noise_scale(median: float, rows: int, columns: int) -> float:
    """Standard deviation of the entries of a noise matrix whose median singular value is that.

    median / sqrt(n * noise_median(m / n)) (Gavish and Donoho 2014, section III.E); low-rank signal hardly moves it.
    """
    m, n = sorted((rows, columns))
    return median / math.sqrt(n * noise_median(m / n))


def noise_edge(scale: float, rows: int, columns: int, chance: float = 0.01) -> float:
    """The singular value that the largest of a noise matrix exceeds with that chance (0.05, 0.01 or 0.001).

    scale * sqrt(centre + width * q), q of the Tracy-Widom law, centre = (sqrt(n - 1) + sqrt(m))^2 and
    width = (sqrt(n - 1) + sqrt(m)) (1 / sqrt(n - 1) + 1 / sqrt(m))^(1/3): Johnstone 2001, Theorem 1.1. For large
    matrices this is the bulk's edge, scale * (sqrt(m) + sqrt(n)).
    """
    m, n = sorted((rows, columns))
    if n == 1:
        return math.inf  # a single number cannot be told from noise
    root = math.sqrt(n - 1) + math.sqrt(m)
    width = root * (1 / math.sqrt(n - 1) + 1 / math.sqrt(m)) ** (1 / 3)
    return scale * math.sqrt(root**2 + width * TRACY_WIDOM[chance])
