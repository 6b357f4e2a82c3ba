"""How much of a layer's gradient the batches agree on: squared mean over variance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import Work
from keylayers.criteria.support.gradients import check_gradients, run_batches
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.scores.scores import LayerScores

Estimate = Literal["unbiased", "plain", "released"]


@dataclass(frozen=True)
class GradientSignalNoise(CriterionSettings):
    """Settings of `gradient_signal_noise`."""

    estimate: Estimate = "unbiased"
    """`unbiased`: squared mean less the noise in it, over the variance, both summed over the layer. `plain`: the mean
    over entries of mean^2 / var, 1 / batches and more on pure noise. `released`: what the paper's code computes, where
    the variance is over the rows of one batch's gradient."""


def _work(layers: Sequence[Layer], settings: GradientSignalNoise, batches: int) -> Work:
    return Work(0, batches)


def _fits(layers: Sequence[Layer], settings: GradientSignalNoise, batches: int) -> None:
    if settings.estimate != "released" and batches < 2:
        raise BadInput(
            f"gradient_signal_noise compares batches, but there is {batches}",
            "give more calibration records",
            "take a smaller `batch_size`",
            "give `settings.estimate=released`",
        )


@criterion("model", "data", settings=GradientSignalNoise, work=_work, fits=_fits)
def score_gradient_signal_noise(
    evidence: Evidence, layers: Sequence[Layer], settings: GradientSignalNoise
) -> LayerScores:
    """mean(g)^2 / var(g) over the gradients of batches, of each layer's weights; high = they agree: worth training.

    Lee et al. 2023 (surgical fine-tuning), Auto-SNR. With n batches of variance s^2 the squared mean holds
    s^2 / n of noise, so that unbiased = sum_i (mean_i^2 - s_i^2 / n) / sum_i s_i^2, near 0 on pure noise, below it by
    chance. Batches count alike; it tells how batches of this size agree. Cost: one forward and backward pass over the
    data. Memory beside activations: one gradient and two accumulators as large as the layers (fp32).

    Raises:
        BadInput: for fewer than two batches. Diverged: if a gradient is not finite.
    """
    # deviates: the released code divides by the variance over a gradient's rows, within one batch, which is no noise;
    # the paper's text and this say over samples. The noise in the squared mean is taken off, as is not done there.
    values = (
        _released(evidence, layers) if settings.estimate == "released" else _over_batches(evidence, layers, settings)
    )
    return scored(evidence, layers, values, criterion="gradient_signal_noise", settings=settings)


def _over_batches(
    evidence: Evidence, layers: Sequence[Layer], settings: GradientSignalNoise
) -> Float[np.ndarray, " layers"]:
    seen: dict[str, int] = {}
    means: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    """Sums of squared deviations from the mean, updated as batches come (Welford 1962)."""

    def take(batch: int, count: int, place: int, name: str, gradient: Tensor) -> None:
        one = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / count
        if name not in means:
            means[name], squares[name] = torch.zeros_like(one), torch.zeros_like(one)
        seen[name] = seen.get(name, 0) + 1
        off = one - means[name]
        means[name] += off / seen[name]
        squares[name] += off * (one - means[name])

    tokens = run_batches(evidence, layers, "gradient_signal_noise", take)
    count = int((tokens > 0).sum())
    if count < 2:
        raise BadInput("gradient_signal_noise compares batches, but only one has a supervised token.")
    values = np.zeros(len(layers))
    for place, layer in enumerate(layers):
        above = below = size = ratio = 0.0
        for name in (one for one in layer.parameters if one in means):
            k = seen[name]  # the others gave no gradient: zeros
            mean = means[name].double() * (k / count)
            spread = squares[name].double() + means[name].double().square() * (k * (count - k) / count)
            variance = spread / (count - 1)
            above += float((mean.square() - variance / count).sum())
            below += float(variance.sum())
            ratio += float(torch.nan_to_num(mean.square() / variance, nan=0.0, posinf=torch.inf).sum())
            size += mean.numel()
        check_gradients(np.array([[below]]), [layer], "gradient_signal_noise")
        if settings.estimate == "plain":
            values[place] = ratio / max(size, 1)
        elif above or below:
            with np.errstate(divide="ignore"):
                values[place] = np.float64(above) / below
    return values


def _released(evidence: Evidence, layers: Sequence[Layer]) -> Float[np.ndarray, " layers"]:
    """Mean over batches and entries of g^2 / (variance of g over the first axis + 1e-8)."""
    sums, sizes = np.zeros((len(evidence.data or ()), len(layers))), np.zeros(len(layers))
    counted: set[str] = set()

    def take(batch: int, count: int, place: int, name: str, gradient: Tensor) -> None:
        one = (gradient / count).double()
        spread = one.var(dim=0, keepdim=True) if len(one) > 1 else torch.zeros_like(one)
        sums[batch, place] += float((one.square() / (spread + 1e-8)).sum())
        if name not in counted:
            counted.add(name)
            sizes[place] += one.numel()

    tokens = run_batches(evidence, layers, "gradient_signal_noise", take)
    check_gradients(sums, layers, "gradient_signal_noise")
    return sums[tokens > 0].mean(0) / np.maximum(sizes, 1)
