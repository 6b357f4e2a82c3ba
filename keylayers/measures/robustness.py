"""Accuracy on clean and on attacked images, per image and with intervals; the worst case over several attacks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.tensor_swap import frozen
from keylayers.maths.attacks import Ball, Pixels
from keylayers.measures.attacks import Attack
from keylayers.measures.intervals import Interval, wilson_interval
from keylayers.measures.objective import logits_of, model_device

SLACK = 1e-4
"""Share of the radius by which rounding may leave the ball; libraries compute in other orders."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Which images a network gets right under something."""

    under: str
    """`clean`, or the attacks' names."""
    correct: Bool[np.ndarray, " samples"]

    @property
    def accuracy(self) -> float:
        """Share that it gets right, in [0, 1]."""
        return float(self.correct.mean())

    def interval(self, level: float = 0.95) -> Interval:
        """The accuracy with Wilson's interval; that of sampling images, not of training anew."""
        return wilson_interval(int(self.correct.sum()), len(self.correct), level=level)

    def __and__(self, other: "Outcomes") -> "Outcomes":
        """Right under both. Raises BadInput if they are of different numbers of images."""
        if len(self.correct) != len(other.correct):
            raise BadInput(
                f"{self.under} was measured on {len(self.correct)} images and {other.under} on {len(other.correct)}; "
                "measure both on the same ones."
            )
        return Outcomes(f"{self.under} and {other.under}", self.correct & other.correct)

    def __str__(self) -> str:
        return f"{self.under}: {self.interval()}"


def clean_accuracy(model: nn.Module, x: Pixels, y: Int[Tensor, " samples"], *, batch_size: int = 200) -> Outcomes:
    """Which images the network classifies rightly, in eval mode; the network is left as it was found.

    Raises:
        BadInput: for no images, another number of labels, or labels out of range.
    """
    right = [correct for _, _, correct in _batches(model, x, y, batch_size)]
    return Outcomes("clean", torch.cat(right).numpy())


def robust_accuracy(
    model: nn.Module, x: Pixels, y: Int[Tensor, " samples"], attack: Attack, *, batch_size: int = 200
) -> Outcomes:
    """Which images it still classifies rightly once attacked; one it gets wrong before counts as wrong, unattacked.

    Raises:
        BadInput: as `clean_accuracy` does, or if an attacked image lies outside the attack's ball or [0, 1].
    """
    right = []
    for images, labels, correct in _batches(model, x, y, batch_size):
        if correct.any():
            chosen = correct.to(images.device)
            attacked = attack(model, images[chosen], labels[chosen])
            _check_inside(attack.name, attack.ball, images[chosen], attacked)
            correct[correct.clone()] = _hits(model, attacked, labels[chosen])
        right.append(correct)
    return Outcomes(attack.name, torch.cat(right).numpy())


def worst_case(*outcomes: Outcomes) -> Outcomes:
    """Right under every one of them, image by image. Raises BadInput for none, or for different numbers of images."""
    if not outcomes:
        raise BadInput("the worst case over no attack is not known; give at least one.")
    worst = outcomes[0]
    for other in outcomes[1:]:
        worst = worst & other
    return worst


def _batches(
    model: nn.Module, x: Pixels, y: Int[Tensor, " samples"], size: int
) -> Iterator[tuple[Pixels, Int[Tensor, " batch"], Bool[Tensor, " batch"]]]:
    """Images and labels on the model's device, and whether it gets them right as they are."""
    if len(x) == 0 or len(x) != len(y) or size < 1:
        raise BadInput(
            f"an accuracy got {len(x)} images, {len(y)} labels and batches of {size}; expected at least one image, as "
            "many labels, and batches of at least 1."
        )
    device = model_device(model)
    for images, labels in zip(x.split(size), y.split(size), strict=True):
        images, labels = images.to(device), labels.to(device)
        yield images, labels, _hits(model, images, labels)


def _hits(model: nn.Module, x: Pixels, y: Int[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    with frozen(model), torch.no_grad():
        logits = logits_of(model(x))
    if logits.ndim != 2:
        raise BadInput(f"the network returned shape {tuple(logits.shape)} for {len(x)} images; expected one logit per "
                       "image and class.")  # fmt: skip
    if len(bad := ((y < 0) | (y >= logits.shape[1])).nonzero().flatten()):
        raise BadInput(
            f"label {int(y[bad[0]])} is out of range ({len(bad)} such): the network knows classes 0 to "
            f"{logits.shape[1] - 1}. Give a network of as many classes as the data has."
        )
    return (logits.argmax(1) == y).cpu()


def _check_inside(name: str, ball: Ball, x: Pixels, attacked: Pixels) -> None:
    moved = (attacked - x).flatten(1)
    length = moved.abs().amax(1) if ball.norm == "linf" else moved.norm(dim=1)
    slack = SLACK * ball.eps + 1e-6
    if not (float(length.max()) <= ball.eps + slack and float(attacked.min()) >= 0 and float(attacked.max()) <= 1):
        raise BadInput(
            f"attack {name} moved an image by {float(length.max()):.6g} ({ball.norm}), to pixels from "
            f"{float(attacked.min()):.4g} to {float(attacked.max()):.4g}; allowed are {ball.eps:.6g} and [0, 1]."
        )
