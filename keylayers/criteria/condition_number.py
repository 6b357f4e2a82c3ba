"""How well conditioned a weight matrix is (KappaTune): the lower the condition number, the safer to tune."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import nothing
from keylayers.criteria.support.spectra import mean_over_matrices
from keylayers.layers.layer import Layer
from keylayers.maths.spectrum import FLOOR
from keylayers.scores.scores import LayerScores

Variant = Literal["corrected", "kappatune"]
ADDED = 1e-8
"""What KappaTune adds to the smallest singular value."""


@dataclass(frozen=True)
class ConditionNumber(CriterionSettings):
    """Settings of `condition_number`."""

    variant: Variant = "corrected"
    """Minus the decimal logarithm, free of scale; or minus the number itself, as peft's KappaTuneSelector has it."""


@criterion("weights", settings=ConditionNumber, work=nothing)
def score_condition_number(evidence: Evidence, layers: Sequence[Layer], settings: ConditionNumber) -> LayerScores:
    """Minus log10 of the condition number s_1 / s_min of each layer's matrix, in [-7, 0]; no forward pass, no data.

    Critical = worth training: KappaTune (arXiv 2506.16289) takes the lowest condition numbers, whose matrices
    hold the least that is specialised and would be forgotten. s_min counts as at least 1e-7 s_1, which is what float64
    resolves: matrices of lower rank are ties at -7. Layers of several matrices: the mean.
    `kappatune`: minus s_1 / (s_min + 1e-8), at most 0, the mean over experts taken of the numbers themselves.

    Raises:
        UnknownName: for another variant.
        BadInput: naming the layer, for weights that are missing, quantised, not finite, or all 0.
    """
    # deviates: peft adds 1e-8 to s_min and averages experts' numbers; here a floor relative to s_1 and a mean of
    # logarithms, because the sum depends on the scale of the weights and one near-singular expert outweighs all others.
    of = _released if settings.variant == "kappatune" else _corrected
    values = mean_over_matrices(evidence, layers, of)
    return scored(evidence, layers, values, criterion="condition_number", settings=settings)


def _corrected(singular: Tensor, shape: tuple[int, int]) -> float:
    return math.log10(max(float(singular[-1] / singular[0]), FLOOR))


def _released(singular: Tensor, shape: tuple[int, int]) -> float:
    return -float(singular[0] / (singular[-1] + ADDED))
