"""Attacks of the torchattacks library behind the same call: APGD, Square and AutoAttack (Croce and Hein 2020)."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.tensor_swap import frozen
from keylayers.maths.attacks import Ball, Pixels
from keylayers.measures.objective import logits_of

INSTALL = "pip install --no-deps torchattacks==3.5.1"
"""Its metadata asks for torchvision, which it never imports, and for an old requests."""

PeerName = Literal["apgd-ce", "apgd-t", "square", "autoattack"]
CLASSES = {"apgd-ce": 2, "apgd-t": 4, "square": 2, "autoattack": 4}
"""Fewest classes: the targeted loss (DLR, arXiv:2003.01690) divides by what the four largest logits span."""


@dataclass(frozen=True)
class PeerAttack:
    """An attack of torchattacks; images on which the network already fails are its own business.

    `apgd-ce` (cross-entropy, adaptive steps), `apgd-t` (nine most likely other classes, one after another), `square`
    (random search: no gradient is used, so that masked ones show), `autoattack` (these and FAB-T, each on what the ones
    before left).
    """

    kind: PeerName
    ball: Ball = field(default_factory=Ball)
    # deviates: torchattacks gives APGD and FAB 10 steps, also within its AutoAttack; here 100, as the paper has.
    steps: int = 100
    queries: int = 5000
    """Of the random search."""
    restarts: int = 1
    seed: int = 0

    @property
    def name(self) -> str:
        """Its kind."""
        return self.kind

    def __call__(self, model: nn.Module, x: Pixels, y: Int[Tensor, " batch"]) -> Pixels:
        """Raises UnknownName for another kind; BadInput without torchattacks, or for fewer classes than it needs."""
        if self.kind not in CLASSES:
            raise UnknownName("attack", str(self.kind), get_args(PeerName))
        library = _library(self.kind)
        with frozen(model), _own_random_numbers():
            with torch.no_grad():
                classes = logits_of(model(x[:1])).shape[-1]
            if classes < CLASSES[self.kind]:
                raise BadInput(
                    f"attack {self.kind} needs at least {CLASSES[self.kind]} classes, the network has {classes}; use "
                    "apgd-ce and square."
                )
            made = self._made(library, _Logits(model), classes)
            return made(x, y).detach().clamp(0, 1)

    def _made(self, library: Any, model: nn.Module, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
        shared = {"norm": {"linf": "Linf", "l2": "L2"}[self.ball.norm], "eps": self.ball.eps, "seed": self.seed}
        shared["n_restarts"] = self.restarts
        targets = min(classes, 10)  # nine targets at most, as the paper has
        makers: dict[str, Callable[[], Any]] = {
            "apgd-ce": lambda: library.APGD(model, steps=self.steps, loss="ce", **shared),
            "apgd-t": lambda: library.APGDT(model, steps=self.steps, n_classes=targets, **shared),
            "fab-t": lambda: library.FAB(
                model, steps=self.steps, n_classes=targets, multi_targeted=True, **shared
            ),
            "square": lambda: library.Square(model, n_queries=self.queries, **shared),
        }  # fmt: skip
        if self.kind == "autoattack":
            return library.MultiAttack([make() for make in makers.values()])
        return makers[self.kind]()


class _Logits(nn.Module):
    """A network whose output is its logits, whatever else it returns."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model

    def forward(self, x: Pixels) -> Tensor:
        return logits_of(self.inner(x))


@contextmanager
def _own_random_numbers() -> Any:
    """The library seeds the global generators; they are put back."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        yield


def _library(kind: str) -> Any:
    try:
        import torchattacks
    except ImportError as error:
        raise BadInput(f"attack {kind} needs torchattacks ({error}); install it with: {INSTALL}") from error
    return torchattacks
