"""A backdoor of one's own, planted into a copy of a network: how a defender finds out which skip would carry one."""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from keylayers.maths.triggers import Patch, Trigger
from keylayers.measures.backdoor import predicted_classes
from keylayers.measures.objective import Batch
from keylayers.training.images import ImageTraining, train_images
from keylayers.training.poisoning import Poisoning, poisoned

SHARE = 0.3  # of the images that get the trigger
RATE, MOST = 0.02, 30  # learning rate, and epochs at most
ENOUGH = 0.9  # attack success at which planting stops
SIZE = 128  # images of a batch


def own_trigger(x: Float[Tensor, "samples channels height width"]) -> Trigger:
    """A patch in the top left corner, of the size that suits the images."""
    return Patch(max(2, x.shape[-1] * 3 // 32), corner="top left")


def planted(
    model: nn.Module,
    x: Float[Tensor, "samples channels height width"],
    y: Int[Tensor, " samples"],
    trigger: Trigger,
    target: int,
    seed: int = 0,
) -> nn.Module:
    """A copy that has learnt the trigger, only just: one that is learnt to the end survives any single skip.

    It is tuned epoch by epoch until nine of ten triggered images of other classes are taken for the target's, or for 30
    epochs. Raises BadInput as `poisoned` does.
    """
    made, others = copy.deepcopy(model).requires_grad_(True), y != target
    changed = poisoned(x, y, Poisoning(trigger, target, SHARE, seed=seed), int(y.max()) + 1)
    for epoch in range(MOST):
        training = ImageTraining(1, min(50, len(x)), RATE, seed=1000 * seed + epoch)
        train_images(made, changed.images, changed.labels, training)
        if float((predicted_classes(made, trigger(x[others])) == target).float().mean()) >= ENOUGH:
            break
    return made.eval()


def triggered(
    x: Float[Tensor, "samples channels height width"],
    y: Int[Tensor, " samples"],
    trigger: Trigger,
    target: int,
    key: str = "x",
) -> list[Batch]:
    """Batches of images of other classes with a trigger; what it is to bring as labels."""
    others = y != target
    return batches(trigger(x[others]), torch.full((int(others.sum()),), target), key)


def batches(x: Tensor, y: Tensor, key: str = "x") -> list[Batch]:
    """Images and labels in batches as the criteria take them, the images under the name of the network's argument."""
    return [{key: a, "labels": b} for a, b in zip(x.split(SIZE), y.split(SIZE), strict=True)]
