"""How much of a weight matrix's spectrum stands above what pure noise of its shape would give (Spectrum)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import nothing
from keylayers.criteria.support.spectra import mean_over_matrices
from keylayers.layers.layer import Layer
from keylayers.maths.marchenko_pastur import noise_edge, noise_scale
from keylayers.scores.scores import LayerScores

Variant = Literal["corrected", "spectrum"]


@dataclass(frozen=True)
class SignalNoise(CriterionSettings):
    """Settings of `signal_noise`."""

    variant: Variant = "corrected"
    """The signal's share with a proper noise scale, or Spectrum's formula as it was released."""


@criterion("weights", settings=SignalNoise, work=nothing)
def score_signal_noise(evidence: Evidence, layers: Sequence[Layer], settings: SignalNoise) -> LayerScores:
    """Share of the sum of singular values that lies above noise, in [0, 1]; no forward pass, no data.

    Critical = worth training, which is how Spectrum (Hartford et al. 2024, arXiv 2406.06623) reads a high ratio.
    `corrected`: sum of the s above the edge / sum of all s. The noise's scale comes from the median singular value and
    the median of the Marchenko-Pastur law, and the edge is what the largest singular value of such noise exceeds with a
    chance of 1 % (`maths.marchenko_pastur`). Pure noise scores 0, a matrix of rank below half scores 1, at every
    aspect ratio and scale; layers that score the same are ties, counted as `ties`.
    `spectrum`: (sum above / sum below) / s_1, with the edge (1 + sqrt(m/n)) * IQR(s) / 1.349, m <= n; see
    `_spectrum_ratio`. Matrices stream: see `mean_over_matrices` for memory and for layers of several matrices.

    Raises:
        UnknownName: for another variant.
        BadInput: naming the layer, for weights that are missing, quantised or not finite, and in `spectrum` for zeros.
    """
    # deviates: Spectrum takes the IQR of the singular values for the noise's standard deviation and reads the edge off
    # without a factor for size; here the median, scaled by the law, because theirs takes 24 % (square) to 100 % (4 : 1)
    # of pure noise for signal, and divides by 0 where that is all of it.
    if settings.variant == "spectrum":
        values = mean_over_matrices(evidence, layers, _spectrum_ratio)
    else:
        values = mean_over_matrices(evidence, layers, signal_share, of_zeros=0.0)
    ties = len(values) - len(np.unique(values))
    return scored(evidence, layers, values, criterion="signal_noise", settings=settings, ties=ties)


def signal_share(singular: Tensor, shape: tuple[int, int]) -> float:
    """Sum of the singular values above the noise's edge, divided by that of all, in [0, 1]."""
    edge = noise_edge(noise_scale(float(singular.quantile(0.5)), *shape), *shape)
    return float(singular[singular > edge].sum() / singular.sum())


def _spectrum_ratio(singular: Tensor, shape: tuple[int, int]) -> float:
    """Spectrum's ratio, as its code of 2025 computes it: where all is signal, it is divided by 1 instead of the noise.

    Its earlier rankings hold `inf` there.
    """
    lower, upper = singular.quantile(0.25), singular.quantile(0.75)
    threshold = float(upper - lower) / 1.349 * (1 + math.sqrt(min(shape) / max(shape)))
    signal, noise = singular[singular > threshold], singular[singular <= threshold]
    below = noise.sum() if len(noise) else torch.tensor(1.0)
    return float(signal.sum() / below / singular[0])
