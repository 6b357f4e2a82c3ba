"""How far a small change of one layer's weights can raise the loss on attacked images (RiFT's module robust
criticality)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.batch_groups import per_token
from keylayers.criteria.support.cost import Work
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.structure import parameters_of
from keylayers.layers.tensor_swap import frozen, swapped
from keylayers.maths.attacks import Ball
from keylayers.measures.attacks import Pgd, image_key
from keylayers.measures.objective import Batch, finite, model_device
from keylayers.models.pixels import checked_pixels
from keylayers.scores.scores import LayerScores
from keylayers.settings import Count, Natural, Positive, Seed, Share


@dataclass(frozen=True)
class RobustCapacity(CriterionSettings):
    """Settings of `robust_capacity`."""

    eps: Share = 8 / 255
    """Radius of the attack on the images, linf, in units of [0, 1]."""
    attack_steps: Natural = 10
    radius: Positive = 0.1
    """Of the ball around a layer's weights, as a share of their Frobenius norm."""
    steps: Count = 10
    """Of the ascent on the weights."""
    step: Positive | None = None
    """Length of such a step, as a share of that norm; None: 2.5 radius / steps."""
    seed: Seed = 0
    """Of the attack's start."""


def _work(layers: Sequence[Layer], settings: RobustCapacity, batches: int) -> Work:
    return Work(batches * len(layers), batches * (settings.attack_steps + settings.steps * len(layers)))


@criterion("model", "data", settings=RobustCapacity, work=_work, images=True)
def score_robust_capacity(evidence: Evidence, layers: Sequence[Layer], settings: RobustCapacity) -> LayerScores:
    """Most that the loss on attacked images rises in a ball around a layer's weights; nats per image, at least 0.

    max over ||W - W_0||_F <= radius ||W_0||_F of the loss, minus the loss at W_0, on images attacked once at W_0
    (module robust criticality, Zhu et al. 2023, arXiv:2308.02533). Found by projected ascent on all data at
    once; the best iterate counts, so it is a lower bound. High = robustness hangs on the layer; RiFT fine-tunes the
    *lowest*. Only matrices and kernels move, those of a block together; biases and norms stay. The weights are not
    written: others stand in for them. Memory: the attacked images, and four copies of one layer's weights.

    Raises:
        BadInput: for data that is no images in [0, 1], or a layer without a matrix. Diverged: if a loss is not finite.
    """
    # deviates: the authors' code climbs by SGD with rate 1 over mini-batches of the test set; here by full gradients
    # whose length is a share of the ball, as layers differ in scale, and on the evidence's data.
    assert evidence.model is not None and evidence.data is not None
    rises = np.zeros((len(evidence.data), len(layers)))
    with frozen(evidence.model):
        data = [_attacked(evidence, batch, settings) for batch in evidence.data]
        terms: list[int] = []
        for place, layer in enumerate(layers):
            rises[:, place], terms = _rise(evidence, data, layer, settings)
            if evidence.progress:
                evidence.progress(place + 1, len(layers), 0.0)
    values, repeats = per_token(rises, terms)
    return scored(evidence, layers, values, criterion="robust_capacity", settings=settings, repeats=repeats)


def _attacked(evidence: Evidence, batch: Batch, settings: RobustCapacity) -> Batch:
    model, key = evidence.model, image_key(batch, "criterion 'robust_capacity'")
    assert model is not None
    x = checked_pixels(batch[key].to(model_device(model)))
    attack = Pgd(Ball(settings.eps), settings.attack_steps, seed=settings.seed)
    return {**batch, key: attack.climbed(lambda images: evidence.loss(model, {**batch, key: images})[0], x)}


def _rise(
    evidence: Evidence, data: Sequence[Batch], layer: Layer, settings: RobustCapacity
) -> tuple[Float[np.ndarray, " batches"], list[int]]:
    """Summed loss of each batch at the worst weights found minus that at the layer's own, and the batches' images."""
    model = evidence.model
    assert model is not None
    own = parameters_of(model)
    names = [name for name in layer.parameters if name in own and own[name].ndim > 1]
    if not names:
        raise BadInput(
            f"robust_capacity moves matrices and kernels, but layer {layer.name} has none of its own",
            "choose another granularity (`granularity=conv`, linear or block)",
        )
    start = torch.cat([own[name].detach().flatten() for name in names])
    length = float(start.double().norm())
    radius, step = settings.radius * length, settings.step
    step = 2.5 * radius / settings.steps if step is None else step * length
    weights, original, worst = start, None, None
    for count in range(settings.steps + 1):
        last = count == settings.steps
        losses, terms, slope = _losses(evidence, data, weights, {name: own[name] for name in names}, not last)
        finite(float(losses.sum()), f"robust_capacity: the loss after {count} steps on {layer.name}")
        original = losses if original is None else original
        worst = losses if worst is None or losses.sum() > worst.sum() else worst
        if slope is not None:
            size = float(slope.norm())
            moved = weights - start + (step / size * slope if size > 0 else 0)
            weights = start + moved * min(1.0, radius / max(float(moved.norm()), 1e-300))
    assert worst is not None and original is not None
    return worst - original, terms


def _losses(
    evidence: Evidence, data: Sequence[Batch], weights: Tensor, like: dict[str, nn.Parameter], slope: bool
) -> tuple[Float[np.ndarray, " batches"], list[int], Tensor | None]:
    """Summed loss of each batch and its images with other weights in place; where asked for, the slope of all."""
    assert evidence.model is not None
    losses, terms, total = np.zeros(len(data)), [0] * len(data), torch.zeros_like(weights) if slope else None
    for index, batch in enumerate(data):
        with torch.set_grad_enabled(slope):
            leaf = weights.detach().requires_grad_(slope)
            parts = leaf.split([value.numel() for value in like.values()])
            placed = {name: part.view_as(value) for (name, value), part in zip(like.items(), parts, strict=True)}
            with swapped(evidence.model, placed):
                loss, terms[index] = evidence.loss(evidence.model, batch)
            losses[index] = float(loss.detach())
            if total is not None:
                total += torch.autograd.grad(loss, leaf)[0]
    return losses, terms, total
