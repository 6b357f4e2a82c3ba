"""How much a layer amplifies what an attack did to the layer before it (CLAT's criticality)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.batch_groups import groups_of
from keylayers.criteria.support.cost import Work
from keylayers.errors import BadInput
from keylayers.layers.capturing import Captured, capture
from keylayers.layers.layer import Layer
from keylayers.layers.tensor_swap import frozen
from keylayers.maths.attacks import Ball
from keylayers.measures.attacks import Pgd, image_key
from keylayers.measures.objective import Batch, finite, model_device
from keylayers.models.pixels import checked_pixels
from keylayers.scores.scores import LayerScores
from keylayers.settings import Natural, Positive, Seed

Normalise = Literal["numel", "relative", "none"]
Before = Literal["layer", "input"]


@dataclass(frozen=True)
class FeatureFragility(CriterionSettings):
    """Settings of `feature_fragility`."""

    eps: Annotated[float, Gt(0), Le(1)] = 8 / 255
    """Radius of the attack, linf, in units of [0, 1]."""
    steps: Natural = 10
    step: Positive | None = None
    """Length of a step; None: 2.5 eps / steps."""
    normalise: Normalise = "numel"
    """What a layer's change is divided by: its number of elements (the paper), its own size on the clean image (LSA,
    arXiv:2202.02626), or nothing."""
    norm_power: Annotated[int, Ge(1), Le(2)] = 1
    """1: the Euclidean norm of the change; 2: its square. Summaries of the paper have both."""
    before: Before = "layer"
    """What a layer is compared with: the layer before it among those scored (the paper; the first one with the image),
    or what enters it, which is right where branches run side by side."""
    seed: Seed = 0
    """Of the attack's start."""

    @property
    def attack(self) -> Pgd:
        """The one attack whose images serve all layers; without steps, random noise."""
        return Pgd(Ball(self.eps), self.steps, self.step, seed=self.seed)


def _work(layers: Sequence[Layer], settings: FeatureFragility, batches: int) -> Work:
    return Work(2 * batches, settings.steps * batches)


@criterion("model", "data", settings=FeatureFragility, work=_work, images=True)
def score_feature_fragility(evidence: Evidence, layers: Sequence[Layer], settings: FeatureFragility) -> LayerScores:
    """Change of a layer's features under attack over that of the layer before it: a ratio of at least 0.

    C_i = W(F_i) / W(F_{i-1}) with W(F) = E_x ||F(x + d) - F(x)||_2 / N, F_i what layer i returns, N its number of
    elements and d the perturbation (CLAT, Gopal et al. 2025, arXiv:2408.10204, by summaries that agree but for the
    square: `norm_power`). d comes from one attack on the loss, the same for all layers, in eval mode. High: the
    layer amplifies it. A ratio of local Lipschitz constants; by the division by N it is also high where a layer
    has fewer elements than the one before. Where that one does not move, the nearest earlier one that does counts, at
    last the image; a layer that does not move scores 0. Intervals from batches.

    Raises:
        BadInput: for data that is no images in [0, 1], an attack that moves no pixel, or a layer that is no module or
            never runs. Diverged: if features are not finite.
    """
    # deviates: the paper's W takes the supremum per layer; here, as its own algorithm does, one attack on the loss.
    assert evidence.model is not None and evidence.data is not None
    sums = np.zeros((len(evidence.data), 2, len(layers) + 1))
    counts = np.zeros(len(evidence.data))
    with frozen(evidence.model):
        for index, batch in enumerate(evidence.data):
            sums[index], counts[index] = _changes(evidence, batch, layers, settings)
            for side, place in np.argwhere(~np.isfinite(sums[index]))[:1]:
                what = layers[max(place - 1, 0)].name
                finite(float(sums[index][side, place]), f"feature_fragility: the change at {what} on batch {index}")
            if evidence.progress:
                evidence.progress(index + 1, len(evidence.data), 0.0)
    if not sums[:, 1, 0].all():
        raise BadInput(
            "feature_fragility: the attack moved no pixel of a batch; give a radius above 0 and images that can move."
        )
    groups = groups_of(len(counts))
    rows = [_ratios(sums[group].sum(0) / counts[group].sum()) for group in groups] if len(groups) > 1 else None
    weakness = sums.sum(0) / counts.sum()
    return scored(
        evidence,
        layers,
        _ratios(weakness),
        criterion="feature_fragility",
        settings=settings,
        repeats=None if rows is None else np.stack(rows),
        weakness=weakness[1, 1:].tolist(),
    )


def _changes(
    evidence: Evidence, batch: Batch, layers: Sequence[Layer], settings: FeatureFragility
) -> tuple[Float[np.ndarray, "2 places"], int]:
    """Summed over the batch's images: what each layer is compared with and how it changed, with the image first."""
    model, key = evidence.model, image_key(batch, "criterion 'feature_fragility'")
    assert model is not None
    x = checked_pixels(batch[key].to(model_device(model)))

    def loss(images: Tensor) -> Tensor:
        return evidence.loss(model, {**batch, key: images})[0]

    attacked = settings.attack.climbed(loss, x)
    with torch.no_grad(), capture(model, layers) as seen:
        loss(x)
        clean = Captured(dict(seen.inputs), dict(seen.outputs))
        loss(attacked)
    if idle := next((layer.name for layer in layers if layer.name not in seen.outputs), None):
        raise BadInput(f"layer {idle} never ran, so it has no features; leave it out.")

    def change(one: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str) -> float:
        return float(_size_of_change(one[name], other[name], len(x), settings, name).sum())

    image = float(_size_of_change(x, attacked, len(x), settings, "image").sum())
    after = [image] + [change(clean.outputs, seen.outputs, layer.name) for layer in layers]
    if settings.before == "layer":
        return np.array([[image, *after[:-1]], after]), len(x)
    before = [image] + [change(clean.inputs, seen.inputs, layer.name) for layer in layers]
    return np.array([before, after]), len(x)


def _size_of_change(
    clean: Tensor, attacked: Tensor, images: int, settings: FeatureFragility, name: str
) -> Float[Tensor, " batch"]:
    """||F(x + d) - F(x)||^power of each image, over the number of elements, over ||F(x)||^power, or as it is."""
    if clean.shape != attacked.shape or clean.numel() % images:
        raise BadInput(
            f"layer {name} returns shape {tuple(clean.shape)} for {images} images, not as many numbers for each; "
            "choose another granularity."
        )
    precise = torch.promote_types(clean.dtype, torch.float32)
    before, after = (value.reshape(images, -1).to(precise) for value in (clean, attacked))
    length = torch.linalg.vector_norm(after - before, dim=1, dtype=torch.float64)
    if settings.normalise == "relative":
        size = torch.linalg.vector_norm(before, dim=1, dtype=torch.float64)
        length = torch.where(size > 0, length / size, (length > 0).to(length))  # from nothing to something: 1
    length = length**settings.norm_power
    return length / before.shape[1] if settings.normalise == "numel" else length


def _ratios(weakness: Float[np.ndarray, "2 places"]) -> Float[np.ndarray, " layers"]:
    """What changed over what it is compared with; the first place is the image's."""
    found, moving = [], weakness[1, 0]
    for before, after in weakness.T[1:]:
        moving = before if before > 0 else moving
        found.append(after / moving if after > 0 else 0.0)
    return np.array(found)
