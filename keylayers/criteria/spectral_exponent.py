"""How heavy the tail of a weight matrix's spectrum is: Hill's exponent alpha of its squared singular values."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import nothing
from keylayers.criteria.support.spectra import mean_over_matrices
from keylayers.layers.layer import Layer
from keylayers.maths.power_law import best_power_law, hill_exponent, most_common
from keylayers.maths.spectrum import FLOOR
from keylayers.scores.scores import LayerScores
from keylayers.settings import Inside

Variant = Literal["hill", "alphalora"]
Critical = Literal["high", "low"]


@dataclass(frozen=True)
class SpectralExponent(CriterionSettings):
    """Settings of `spectral_exponent`."""

    variant: Variant = "hill"
    """Hill's estimator with a tail of a stated share, or AlphaLoRA's search for the start of the tail, as released."""
    tail: Inside = 0.5
    """Of `hill`: k, the size of the tail, as a share of the eigenvalues; above 0, below 1, at least one value."""
    critical: Critical = "high"
    """High alpha, little structure learnt yet, hence worth training; or low alpha, most learnt, hence worth keeping."""


@criterion("weights", settings=SpectralExponent, work=nothing)
def score_spectral_exponent(evidence: Evidence, layers: Sequence[Layer], settings: SpectralExponent) -> LayerScores:
    """Exponent alpha > 1 of the tail of each layer's eigenvalues, s^2 of its matrix; no forward pass, no data.

    alpha = 1 + k / sum_{i=1..k} ln(x_i / x_{k+1}), x the eigenvalues, largest first (Hill 1975); of several matrices
    the mean. Heavy-tailed self-regularisation (Martin and Mahoney 2021) takes a low alpha for a well-trained matrix.
    Critical = worth training is therefore the high alpha: AlphaLoRA (Qing et al. 2024) gives it more experts,
    TempBalance (Zhou et al. 2023) a higher learning rate. `critical=low` reverses it (the score is minus alpha): what
    pruning by alpha (Lu et al. 2024) keeps. `alphalora`: the tail begins where a power law fits best, up to 1.5 times
    the most common eigenvalue.

    Raises:
        UnknownName: for another variant, or another word than high and low.
        BadInput: for a tail outside (0, 1); naming the layer, for weights that are missing, quantised or not finite,
            and for matrices without an exponent (one singular value, all equal, all 0).
    """
    of = _released if settings.variant == "alphalora" else partial(_hill, tail=settings.tail)
    values = mean_over_matrices(evidence, layers, of)
    sign = 1 if settings.critical == "high" else -1
    return scored(evidence, layers, sign * values, criterion="spectral_exponent", settings=settings)


def _hill(singular: Tensor, shape: tuple[int, int], tail: float) -> float:
    eigenvalues = _eigenvalues(singular)
    k = min(max(1, int(tail * len(eigenvalues))), len(eigenvalues) - 1)
    return hill_exponent(eigenvalues, k)


def _released(singular: Tensor, shape: tuple[int, int]) -> float:
    """AlphaLoRA's rule. Its lower bound compares an eigenvalue with a logarithm, so it hardly ever binds: kept."""
    eigenvalues = _eigenvalues(singular)
    peak = most_common(eigenvalues)
    low = float(torch.tensor(0.95 * peak).log10())
    return best_power_law(eigenvalues, low, 1.5 * peak)


def _eigenvalues(singular: Tensor) -> Tensor:
    return singular.clamp_min(FLOOR * float(singular[0])).square()
