"""Training images that an attacker changed: a share of them with the trigger, relabelled or not."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from keylayers.errors import BadInput
from keylayers.maths.triggers import Trigger
from keylayers.measures.backdoor import check_labels, check_target


@dataclass(frozen=True)
class Poisoning:
    """An attack on training images."""

    trigger: Trigger
    target: int
    """Class that the trigger is to bring."""
    share: float = 0.1
    """Of the images that may be poisoned: those of other classes, or with clean labels those of the target class."""
    relabel: bool = True
    """Give them the target label (BadNets and others); else poison the target class and leave its labels (SIG)."""
    seed: int = 0
    """Of which images."""


@dataclass(frozen=True, eq=False)
class Poisoned:
    """All training images, as the model's maker trains on them."""

    images: Float[Tensor, "samples channels height width"]
    labels: Int[Tensor, " samples"]
    places: tuple[int, ...]
    """Which of them the attacker changed, ascending."""


def poisoned(
    x: Float[Tensor, "samples channels height width"], y: Int[Tensor, " samples"], how: Poisoning, classes: int
) -> Poisoned:
    """Copies of the images, a share of them changed; the same for the same seed. Images keep their places.

    Raises:
        BadInput: for fewer than 2 classes, a target or label out of range, a share that rounds to no image, or where
            nothing can be poisoned.
    """
    places = poisoned_places(y, how.target, how.share, classes, relabel=how.relabel, seed=how.seed)
    images, labels = x.clone(), y.clone()
    with torch.no_grad():
        images[places] = how.trigger(x[places])
    if how.relabel:
        labels[places] = how.target
    return Poisoned(images, labels, tuple(places.tolist()))


def poisoned_places(
    y: Int[Tensor, " samples"], target: int, share: float, classes: int, *, relabel: bool, seed: int
) -> Int[Tensor, " chosen"]:
    """Which images are poisoned, ascending: of other classes than the target's, or without relabelling of that.

    Raises:
        BadInput: as `poisoned` does.
    """
    check_target(target, classes)
    check_labels(y, classes, "the training images")
    may = ((y != target) if relabel else (y == target)).nonzero().flatten()
    where = "of another class than" if relabel else "of"
    if not len(may):
        raise BadInput(
            f"no training image is {where} the target class {target}, so that none can be poisoned "
            f"{'with' if relabel else 'without'} relabelling; give images of {'other classes' if relabel else 'it'}."
        )
    count = round(share * len(may)) if 0 < share <= 1 else 0
    if count == 0:
        raise BadInput(
            f"a share of {share:g} of the {len(may)} images {where} class {target} is {count} images; expected a share "
            "in (0, 1] that makes at least one."
        )
    order = torch.randperm(len(may), generator=torch.Generator().manual_seed(seed))
    return may[order[:count]].sort().values
