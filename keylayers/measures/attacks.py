"""Attacks on a network of images, on its loss or on its features; values that say how far and how hard."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from keylayers.errors import BadInput
from keylayers.layers.capturing import capture
from keylayers.layers.tensor_swap import frozen
from keylayers.maths.attacks import Ball, Objective, Pixels, pgd_best_iterate, pgd_last_iterate
from keylayers.measures.objective import Batch, logits_of
from keylayers.settings import Count, Natural, Positive, Seed, Settings


class Attack(Protocol):
    """Makes images on which a network should fail; the network is left as it was found."""

    @property
    def name(self) -> str:
        """As tables show it."""

    @property
    def ball(self) -> Ball:
        """How far it may go."""

    def __call__(self, model: nn.Module, x: Pixels, y: Int[Tensor, " batch"]) -> Pixels:
        """Attacked images, each within the ball around its own."""


@dataclass(frozen=True)
class Pgd(Settings):
    """Projected gradient ascent on the cross-entropy (Madry et al. 2018, arXiv:1706.06083); each image's best iterate.

    The network is attacked in eval mode.
    """

    ball: Ball = field(default_factory=Ball)
    steps: Natural = 10
    step: Positive | None = None
    """Length of a step, in the ball's norm; None: 2.5 eps / steps, so that the far side can be reached."""
    restarts: Count = 1
    random_start: bool = True
    seed: Seed = 0

    @property
    def name(self) -> str:
        """Steps, and restarts where there are several."""
        return f"pgd-{self.steps}" + (f"x{self.restarts}" if self.restarts > 1 else "")

    @property
    def step_size(self) -> float:
        """The length of a step."""
        return 2.5 * self.ball.eps / max(self.steps, 1) if self.step is None else self.step

    def __call__(self, model: nn.Module, x: Pixels, y: Int[Tensor, " batch"]) -> Pixels:
        """Raises BadInput for images outside [0, 1]."""
        with frozen(model):
            return self.ascended(loss_on(model, y), x)

    def ascended(self, objective: Objective, x: Pixels) -> Pixels:
        """The best iterates on any objective with these settings; the network in it should be frozen."""
        again = {"restarts": self.restarts, "seed": self.seed, "random_start": self.random_start}
        return pgd_best_iterate(objective, x, self.ball, self.step_size, self.steps, **again).x  # type: ignore[arg-type]

    def climbed(self, objective: Objective, x: Pixels, seed: int | None = None) -> Pixels:
        """The last iterate of one start: a forward pass cheaper, for training and criteria."""
        begin = {"seed": self.seed if seed is None else seed, "random_start": self.random_start}
        return pgd_last_iterate(objective, x, self.ball, self.step_size, self.steps, **begin)  # type: ignore[arg-type]


@dataclass(frozen=True)
class FeatureAttack:
    """Drives the features of some layers as far as it can, whatever the loss says; no use is made of labels.

    A network trained for features that stand still must be tested so: attacks on its loss may only be harder.
    """

    layers: tuple[str, ...]
    pgd: Pgd = field(default_factory=Pgd)

    @property
    def name(self) -> str:
        """The ascent's name and how many layers."""
        return f"features-{self.pgd.name} of {len(self.layers)} layers"

    @property
    def ball(self) -> Ball:
        """That of the ascent."""
        return self.pgd.ball

    def __call__(self, model: nn.Module, x: Pixels, y: Int[Tensor, " batch"]) -> Pixels:
        """Raises UnknownName for a layer that the network does not have; BadInput without a layer."""
        with frozen(model):
            return self.pgd.ascended(features_moved(model, self.layers, x), x)


def loss_on(model: nn.Module, y: Int[Tensor, " batch"]) -> Objective:
    """Images -> cross-entropy of each in nats."""
    return lambda x: cross_entropy(logits_of(model(x)), y, reduction="none")


def features_moved(model: nn.Module, layers: Sequence[str], x: Pixels) -> Objective:
    """Images -> how far each moved the features from those of `x`, as `feature_distance` has it.

    Its slope at `x` itself is 0: start at random.
    """
    with torch.no_grad():
        still = features(model, layers, lambda: model(x))
    return lambda moved: feature_distance(features(model, layers, lambda: model(moved)), still)


def features(model: nn.Module, layers: Sequence[str], run: Callable[[], object]) -> dict[str, Tensor]:
    """What layers return in a forward pass that ends at the last of them; differentiable.

    Raises:
        UnknownName: for a layer that the model does not have. BadInput: for one that never ran, or none.
    """
    if not layers:
        raise BadInput("an attack on features got no layer; name at least one.")
    with capture(model, layers, detach=False, stop=True) as seen:
        run()
    if idle := next((name for name in layers if name not in seen.outputs), None):
        raise BadInput(f"layer {idle} never ran, so it has no features; leave it out.")
    return seen.outputs


def feature_distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> Float[Tensor, " batch"]:
    """Squared distance of two sets of features over their number of elements, summed over layers; one per image."""
    parts = [(value - other[name]).flatten(1).square().mean(1) for name, value in one.items()]
    return torch.stack(parts).sum(0)


def image_key(batch: Batch, what: str) -> str:
    """The name under which a batch holds its images. Raises BadInput, for `what`, if it holds none."""
    found = [key for key, value in batch.items() if isinstance(value, Tensor) and value.ndim == 4]
    if len(found) != 1:
        raise BadInput(
            f"{what} takes images, one tensor (batch, channels, height, width) per batch, but the data holds "
            f"{', '.join(map(str, batch)) or 'nothing'}; give a network of images and its data."
        )
    return found[0]
