"""Norm of the gradient of a layer's weights."""

from collections.abc import Sequence
from dataclasses import dataclass

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import Work
from keylayers.criteria.support.gradients import Estimate, enough_batches, gradient_norms
from keylayers.layers.layer import Layer
from keylayers.scores.scores import LayerScores


@dataclass(frozen=True)
class GradientNorm(CriterionSettings):
    """Settings of `gradient_norm`."""

    estimate: Estimate = "unbiased"
    """`plain`: of the gradient over all data. `unbiased`: of its square the noise's share is taken off, which grows
    with a layer's size and with fewer records. `batches`: mean of the norms of the batches' gradients."""


def _work(layers: Sequence[Layer], settings: GradientNorm, batches: int) -> Work:
    return Work(0, batches)


@criterion("model", "data", settings=GradientNorm, work=_work, fits=enough_batches)
def score_gradient_norm(evidence: Evidence, layers: Sequence[Layer], settings: GradientNorm) -> LayerScores:
    """Frobenius norm of the gradient of the layer's weights, in nats per token and unit of weight.

    High = the loss falls fastest there, so that the layer is worth training (not: that it may not be removed). An
    unbiased estimate is below 0 where the batches agree less than noise would. Cost: one forward and backward pass over
    the data. Memory beside activations: one gradient, and their sum over batches, as large as the layers (fp32), which
    `batches` does without.

    Raises:
        BadInput: for `unbiased` with one batch, or quantised weights.
        Diverged: if a loss or gradient is not finite.
    """
    norms = gradient_norms(evidence, layers, "gradient_norm", whole=settings.estimate != "batches")
    values, repeats = norms.estimate(settings.estimate), norms.repeats(settings.estimate)
    return scored(evidence, layers, values, criterion="gradient_norm", settings=settings, repeats=repeats)
