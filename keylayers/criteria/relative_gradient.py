"""Norm of the gradient of a layer's weights relative to the weights' own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import Work
from keylayers.criteria.support.gradients import Estimate, enough_batches, gradient_norms
from keylayers.layers.layer import Layer
from keylayers.layers.weight_gradients import weight_norms
from keylayers.scores.scores import LayerScores


@dataclass(frozen=True)
class RelativeGradient(CriterionSettings):
    """Settings of `relative_gradient`."""

    estimate: Estimate = "unbiased"
    """Of the gradient's norm, as `gradient_norm` has it; the released code averages over five batches (`batches`)."""


def _work(layers: Sequence[Layer], settings: RelativeGradient, batches: int) -> Work:
    return Work(0, batches)


@criterion("model", "data", settings=RelativeGradient, work=_work, fits=enough_batches)
def score_relative_gradient(evidence: Evidence, layers: Sequence[Layer], settings: RelativeGradient) -> LayerScores:
    """||g|| / ||theta|| of each layer, by which Auto-RGN sets learning rates; high = worth training.

    Lee et al. 2023 (surgical fine-tuning). Cost and memory as `gradient_norm`. A layer whose weights are all
    zero has a score of 0 where its gradient is, and is refused otherwise.

    Raises:
        BadInput: for `unbiased` with one batch, or quantised weights.
        Diverged: if a loss or gradient is not finite, or weights of zero have a gradient.
    """
    # deviates: the paper takes one ratio per tensor and the mean over batches of its norms, noise and all; here a
    # layer's parameters count together, and the default takes off the noise, because noise grows with a layer's size.
    assert evidence.model is not None
    weights = np.array(weight_norms(evidence.model, layers))
    norms = gradient_norms(evidence, layers, "relative_gradient", whole=settings.estimate != "batches")
    values, repeats = norms.estimate(settings.estimate), norms.repeats(settings.estimate)
    return scored(
        evidence,
        layers,
        _ratio(values, weights),
        criterion="relative_gradient",
        settings=settings,
        repeats=None if repeats is None else _ratio(repeats, weights),
    )


def _ratio(norms: np.ndarray, weights: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.divide(norms, weights, out=np.zeros_like(norms), where=norms != 0)
