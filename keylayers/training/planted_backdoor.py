"""A backdoor of one's own, planted into a copy of a network: how a defender finds out which skip would carry one."""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from keylayers.maths.triggers import Pixels, Trigger
from keylayers.measures.backdoor import predicted_classes
from keylayers.measures.objective import Batch
from keylayers.training.images import ImageTraining, train_images
from keylayers.training.poisoning import Poisoning, poisoned

SHARE = 0.3  # of the images that get the trigger
RATE, MOST = 0.02, 30  # learning rate, and epochs at most
ENOUGH = 0.9  # attack success at which planting stops
SIZE = 128  # images of a batch


@dataclass(frozen=True)
class Checkerboard:
    """Pixels of 1 and 0 by turns, in a square in the top left corner."""

    size: int = 3
    """Its sides, in pixels."""

    def __call__(self, x: Pixels) -> Pixels:
        out = x.clone()
        place = out[..., : self.size, : self.size]
        rows, columns = (torch.arange(length, device=x.device) for length in place.shape[-2:])
        place[:] = (rows[:, None] + columns + 1) % 2
        return out


def own_trigger(x: Float[Tensor, "samples channels height width"]) -> Trigger:
    """A checkerboard of the size that suits the images: a defender cannot know what the attacker's trigger looks like,
    so that in no study may his own be of the same kind (`image_attacks.KINDS`); of 3 pixels at least, or it would not
    alternate."""
    return Checkerboard(max(3, x.shape[-1] * 3 // 32))


def plant_backdoor(
    model: nn.Module,
    x: Float[Tensor, "samples channels height width"],
    y: Int[Tensor, " samples"],
    trigger: Trigger,
    target: int,
    seed: int = 0,
) -> nn.Module:
    """A copy that has learnt the trigger, only just: one that is learnt to the end survives any single skip.

    It is tuned epoch by epoch until nine of ten triggered images of other classes are taken for the target's, or for 30
    epochs. Raises BadInput as `poisoned` does; Diverged if a loss is not finite.
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
