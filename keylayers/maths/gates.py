"""From scores to gates in [0, 1]: the plain sigmoid, a soft top-k with a fixed sum, and hard-concrete gates (L0)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Scores = Float[Tensor, " layers"]

STRETCH = (-0.1, 1.1)
"""Interval the concrete variable is stretched to before it is clipped to [0, 1] (Louizos et al. 2018, section 4)."""
CONCRETE_TEMPERATURE = 2 / 3


def soft_top_k(scores: Scores, total: float, temperature: float = 1.0) -> Scores:
    """Gates sigmoid((s + nu) / temperature) in (0, 1) whose sum is `total`; nu by bisection, differentiated implicitly.

    As the temperature falls they tend to the indicator of the `total` largest scores. Computed in float64, in which the
    sum is exact to rounding.

    Raises:
        ValueError: unless 0 < total < number of layers and the temperature is positive.
    """
    if not 0 < total < len(scores):
        raise ValueError(f"the gates of {len(scores)} layers cannot sum to {total}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    precise = scores.double()
    with torch.no_grad():
        # At either end every gate is within sigmoid(-40) of 0 or of 1.
        low, high = -precise.max() - 40 * temperature, -precise.min() + 40 * temperature
        for _ in range(100):
            middle = (low + high) / 2
            too_low = torch.sigmoid((precise + middle) / temperature).sum() < total
            low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
        nu = (low + high) / 2
        slope = torch.sigmoid((precise + nu) / temperature)
        slope = slope * (1 - slope)
        share = slope / slope.sum().clamp_min(1e-300)
    # The sum is constant, so dnu/ds_i = -slope_i / sum(slope); the last term is 0 and carries that derivative.
    shifted = precise + nu - (share * (precise - precise.detach())).sum()
    return torch.sigmoid(shifted / temperature).to(scores.dtype)


def hard_concrete(log_alpha: Scores, generator: torch.Generator | None = None) -> Scores:
    """Gates in [0, 1], exactly 0 or 1 with positive probability; without a generator, their deterministic value.

    Louizos, Welling, Kingma 2018 (arXiv:1712.01312), Eq. 10-11 (sampling) and 13 (at test time).
    """
    if generator is None:
        concrete = torch.sigmoid(log_alpha)
    else:
        uniform = torch.rand(log_alpha.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(log_alpha)
        concrete = torch.sigmoid((uniform.log() - (1 - uniform).log() + log_alpha) / CONCRETE_TEMPERATURE)
    low, high = STRETCH
    return (concrete * (high - low) + low).clamp(0, 1)


def expected_open(log_alpha: Scores) -> Float[Tensor, ""]:
    """Expected number of gates that are not exactly 0, in [0, layers]: the differentiable L0 norm (ibid., Eq. 12)."""
    low, high = STRETCH
    return torch.sigmoid(log_alpha - CONCRETE_TEMPERATURE * math.log(-low / high)).sum()
