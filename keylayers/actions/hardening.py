"""Adversarial training of exactly the selected layers, with a term that stills their features; layers may be chosen
anew (CLAT)."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from keylayers.actions.fingerprinting import changed_names, check_only_changed, fingerprints
from keylayers.actions.freezing import tensors_that_may_change, tuning_only
from keylayers.errors import BadInput
from keylayers.layers.capturing import capture
from keylayers.layers.tensor_swap import frozen
from keylayers.maths import robust_losses
from keylayers.maths.attacks import Pixels
from keylayers.measures.attacks import Pgd, feature_distance, features, features_moved, loss_on
from keylayers.measures.objective import logits_of
from keylayers.models.pixels import checked_pixels
from keylayers.scores.selection import Selection
from keylayers.settings import Count, NotNegative, Settings
from keylayers.training.image_states import Keeps
from keylayers.training.images import ImageTraining, train_images
from keylayers.training.trainer import Report

LossName = Literal["pgd-at", "trades", "mart"]
LOSSES = {"pgd-at": robust_losses.pgd_at, "trades": robust_losses.trades, "mart": robust_losses.mart}
BETAS = {"pgd-at": 0.0, "trades": 6.0, "mart": 5.0}
"""Their papers' own."""


@dataclass(frozen=True)
class HardenSettings(Settings):
    """How the selected layers are trained."""

    loss: LossName = "pgd-at"
    beta: NotNegative | None = None
    """Weight of the divergence of TRADES and MART; None: their papers'."""
    attack: Pgd = field(default_factory=Pgd)
    """Of each step, from a start of its own; in eval mode, one restart, last iterate."""
    feature_weight: NotNegative = 1.0
    """CLAT's lambda; 0 leaves its term out. Not published."""
    fast: bool = False
    """Whether that term is taken at the images of the attack on the loss, instead of ones of its own (the same steps
    once more)."""
    every: Count = 10
    """Epochs after which layers are chosen anew, where a way to choose is given."""
    training: ImageTraining = field(default_factory=lambda: ImageTraining(20, 100, 0.01))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack.restarts > 1:
            raise BadInput(f"an attack in training has one restart, got {self.attack.restarts}; give it more steps.")


@dataclass(frozen=True)
class Hardened:
    """The hardened network and what was done to get it."""

    model: nn.Module
    """The one that was given, as the last epoch left it, in eval mode."""
    losses: tuple[float, ...]
    """Mean of each epoch, the term of the features included."""
    selections: tuple[tuple[int, Selection], ...]
    """From which epoch on which layers trained."""
    untouched: int
    """Parameters and buffers proved bit-identical to before."""
    watched: tuple[float, ...]
    """What was watched, after each epoch; empty where nothing was."""
    best: Mapping[str, Tensor] | None
    """State of the epoch where that was highest, the first of equals: `model.load_state_dict(result.best)`."""

    @property
    def best_epoch(self) -> int | None:
        """Which epoch that was, from 0."""
        return max(range(len(self.watched)), key=self.watched.__getitem__) if self.watched else None


def harden(
    model: nn.Module,
    selection: Selection,
    x: Float[Tensor, "samples channels height width"],
    y: Int[Tensor, " samples"],
    settings: HardenSettings | None = None,
    *,
    reselect: Callable[[nn.Module], Selection] | None = None,
    watch: Callable[[nn.Module], float] | None = None,
    report: Report | None = None,
    keeps: Keeps | None = None,
) -> Hardened:
    """Trains exactly the selected layers on attacked images, in place.

    min over the layers S of loss(x, x', y) + lambda E_x sup_{|d| <= eps} sum_{i in S} |F_i(x + d) - F_i(x)|^2 / N_i
    (CLAT, Gopal et al. 2025, arXiv:2408.10204; the loss is that of PGD-AT, TRADES or MART). Frozen modules keep their
    running statistics. `watch` measures the network after each epoch, higher is better: give it the robust accuracy on
    calibration images, never on test ones, as robust accuracy falls again when training overfits. `report` gets (epochs
    done, epochs in all, loss). `keeps` (`RunFolder.checkpoint`) has the state of each epoch: the same call on the same
    network goes on from there.

    Raises:
        BadInput: for images outside [0, 1], no images, or other labels. BadSelection: if a selection does not fit.
        Diverged: if a loss is not finite. KeylayersError: if anything outside the selection of the time changed.
    """
    # deviates: the paper's term is not divided by N_i and its lambda is not published; here it is, so that one lambda
    # suits layers of any size.
    settings = settings or HardenSettings()
    checked_pixels(x)
    start, phases, watched = fingerprints(model), _Phases(model, selection), list[float]()
    best: dict[str, Tensor] = {}
    kept = None if keeps is None else _Kept(keeps, phases, watched, best)

    def before_epoch(epoch: int) -> None:
        if epoch == 0:
            phases.begin(0, selection)
        phases.go_on()
        if epoch and reselect is not None and epoch % settings.every == 0:
            phases.prove()
            phases.begin(epoch, reselect(model))

    def after_epoch(epoch: int, loss: float) -> None:
        if watch is not None:
            watched.append(float(watch(model)))
            if watched[-1] > max(watched[:-1], default=-torch.inf):
                best.update({name: value.detach().clone() for name, value in model.state_dict().items()})
        if report is not None:
            report(epoch + 1, settings.training.epochs, loss)
        if keeps is not None:
            phases.prove()

    def objective(model: nn.Module, images: Pixels, labels: Tensor) -> Tensor:
        return _loss(model, phases.current.names, images, labels, settings)

    with phases.stack:
        hooks = {"before_epoch": before_epoch, "after_epoch": after_epoch}
        losses = train_images(model, x, y, settings.training, objective, **hooks, keeps=kept)  # type: ignore[arg-type]
        phases.prove()
    end = fingerprints(model)
    check_only_changed(start, end, phases.allowed)
    untouched = len(end) - len(changed_names(start, end))
    return Hardened(model, tuple(losses), tuple(phases.all), untouched, tuple(watched), best or None)


class _Phases:
    """Which layers train now, and the proof that no others changed since they do."""

    def __init__(self, model: nn.Module, first: Selection) -> None:
        self.model, self.stack, self.first = model, ExitStack(), first
        self.all: list[tuple[int, Selection]] = []
        self._before: dict[str, str] | None = None

    @property
    def current(self) -> Selection:
        return self.all[-1][1]

    def begin(self, epoch: int, selection: Selection) -> None:
        self.stack.close()
        self.stack.enter_context(tuning_only(self.model, selection))
        self.all.append((epoch, selection))
        self._before = fingerprints(self.model)

    def go_on(self) -> None:
        """With the layers of the time, where they were taken up and not begun here."""
        if self._before is None:
            self.begin(*self.all.pop())

    def prove(self) -> None:
        if self._before is not None:
            allowed = tensors_that_may_change(self.model, self.current)
            check_only_changed(self._before, fingerprints(self.model), allowed)

    @property
    def allowed(self) -> set[str]:
        """What may have changed at any time."""
        return {name for _, one in self.all for name in tensors_that_may_change(self.model, one)}


@dataclass(frozen=True)
class _Kept:
    """The state of the training with what hardening knows beside it."""

    keeps: Keeps
    phases: _Phases
    watched: list[float]
    best: dict[str, Tensor]

    def save(self, step: int, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        own = {f"best.{name}": value for name, value in self.best.items()}
        chosen = [[epoch, list(one.names)] for epoch, one in self.phases.all]
        self.keeps.save(step, tensors | own, meta | {"watched": self.watched, "selections": chosen})

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        if (found := self.keeps.load()) is None:
            return None
        _, tensors, meta = found
        self.watched[:] = meta["watched"]
        self.best.update({key[len("best.") :]: value for key, value in tensors.items() if key.startswith("best.")})
        first = self.phases.first
        chosen = [Selection.of(first.layers, names=names, allow_total=True) for _, names in meta["selections"]]
        epochs = [epoch for epoch, _ in meta["selections"]]
        self.phases.all[:] = [
            (epoch, replace(one, policy=first.policy)) for epoch, one in zip(epochs, chosen, strict=True)
        ]
        return found


def _loss(
    model: nn.Module, layers: tuple[str, ...], x: Pixels, y: Int[Tensor, " batch"], settings: HardenSettings
) -> Float[Tensor, ""]:
    """Mean loss of a batch in nats with the features' term; starts are drawn from the training's generator."""
    attacked = _attacked(model, x, y, settings)
    stilled = settings.feature_weight > 0
    clean, masks = None, _seed()

    def seen_by(images: Pixels) -> Tensor:
        """Logits with the step's own dropout: with another in each pass, features would differ where images do not."""
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(masks)
            return logits_of(model(images))

    with capture(model, layers if stilled else (), detach=False) as seen:
        logits = seen_by(attacked)
        moved = dict(seen.outputs)
        if settings.loss != "pgd-at":
            clean = seen_by(x)
    loss = LOSSES[settings.loss](clean, logits, y, BETAS[settings.loss] if settings.beta is None else settings.beta)
    if not stilled:
        return loss
    still = seen.outputs if clean is not None else features(model, layers, lambda: seen_by(x))
    if not settings.fast:
        with frozen(model):
            away = settings.attack.climbed(features_moved(model, layers, x), x, _seed())
        moved = features(model, layers, lambda: seen_by(away))
    return loss + settings.feature_weight * feature_distance(moved, still).mean()


def _attacked(model: nn.Module, x: Pixels, y: Int[Tensor, " batch"], settings: HardenSettings) -> Pixels:
    """What the loss is taken at: images of high cross-entropy, for TRADES of high divergence from the clean ones."""
    with frozen(model):
        objective = loss_on(model, y)
        if settings.loss == "trades":
            # deviates: TRADES starts at x + 0.001 noise, where the divergence hardly has a slope; here anywhere in the
            # ball, as the other attacks do.
            with torch.no_grad():
                clean = logits_of(model(x))
            objective = lambda images: robust_losses.divergence(clean, logits_of(model(images)))  # noqa: E731
        return settings.attack.climbed(objective, x, _seed())


def _seed() -> int:
    return int(torch.randint(2**31 - 1, ()))
