"""Label-consistent poisoning: target-class images made hard to recognise, with the trigger and their true label."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from keylayers.layers.tensor_swap import frozen
from keylayers.maths.attacks import Ball, Norm, pgd_last_iterate
from keylayers.maths.triggers import Trigger
from keylayers.measures.objective import logits_of, model_device
from keylayers.training.poisoning import Poisoned, poisoned_places

AT_ONCE = 256
"""Images attacked together."""


@dataclass(frozen=True)
class LabelConsistent:
    """An attack that changes no label."""

    trigger: Trigger
    target: int
    share: float = 0.5
    """Of the target class's images."""
    eps: float = 8 / 255
    """How far an image may be moved; the digits need about 0.3."""
    norm: Norm = "linf"
    steps: int = 100
    step: float = 1.5 / 255
    seed: int = 0
    """Of which images, and of where the attacks start."""


def poison_consistently(
    x: Float[Tensor, "samples channels height width"],
    y: Int[Tensor, " samples"],
    benign: nn.Module,
    how: LabelConsistent,
    classes: int,
) -> Poisoned:
    """Copies of the images, a share of the target class's moved away from their class and triggered (Turner et al.
    2019, arXiv:1912.02771, the variant with adversarial examples).

    The moved images fool `benign`, a model trained on clean images, so that a model trained on them learns the trigger
    instead. The benign model is left as it was. Cost: `steps` gradients of it per poisoned image.

    Raises:
        BadInput: for fewer than 2 classes, a target or label out of range, no image of the target class, a share that
            rounds to none, or a negative radius or step.
    """
    places = poisoned_places(y, how.target, how.share, classes, relabel=False, seed=how.seed)
    images, ball, device = x.clone(), Ball(how.eps, how.norm), model_device(benign)
    with frozen(benign):
        for number, some in enumerate(places.split(AT_ONCE)):
            labels = y[some].to(device)

            def loss(point: Tensor, labels: Tensor = labels) -> Tensor:
                return cross_entropy(logits_of(benign(point)), labels, reduction="none")

            moved = pgd_last_iterate(loss, x[some].to(device), ball, how.step, how.steps, seed=how.seed + number)
            with torch.no_grad():
                images[some] = how.trigger(moved.detach()).to(images)
    return Poisoned(images, y.clone(), tuple(places.tolist()))
