"""What the cells of the hardening study compute: an adversarially trained start, and what training some layers adds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from keylayers.actions.hardening import HardenSettings, harden
from keylayers.actions.robust_finetuning import RiftSettings, rift
from keylayers.criteria.feature_fragility import FeatureFragility, score_feature_fragility
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.robust_capacity import RobustCapacity, score_robust_capacity
from keylayers.data.images import ImageParts
from keylayers.errors import Diverged
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import parameters_of
from keylayers.maths.attacks import Ball
from keylayers.measures.attacks import FeatureAttack, Pgd
from keylayers.measures.masking import sanity
from keylayers.measures.objective import image_loss
from keylayers.measures.robustness import clean_accuracy, robust_accuracy, worst_case
from keylayers.runs.quiet import quiet_libraries
from keylayers.scores import LayerScores, Selection, select
from keylayers.studies.image_task import ImageTask, store
from keylayers.training.images import ImageTraining

NOTHING: Mapping[str, Any] = {"clean": 0.0, "loss": 0.0, "features": 0.0, "robust": 0.0, "flags": []}
"""Figures of a network that is not there: it gets no image right."""
SIZE = 128  # images of a batch that layers are chosen on
ALL, EVERY, CRITICAL, LEAST, CAPACITY = "all", "every", "critical", "least critical", "least robust capacity"
RANDOM, ALIKE = "random", "random, same size"
"""`every`: all convolutions. Random layers are drawn anew whenever layers are chosen; `same size`: others than the
critical ones, each as near in size to one of them as there is."""


@dataclass(frozen=True)
class Plan:
    """What all arms of a task share."""

    eps: float
    steps: int
    """Of the attacks of training."""
    start_epochs: int
    """Adversarial training of everything, from which every arm goes on."""
    epochs: int
    """Of every arm."""
    every: int
    """Epochs after which layers are chosen anew."""
    share: float
    """Of the layers that train, at least one; the paper's 5 %."""
    learning_rate: float
    """Of the start, and the first that arms are offered."""
    rates: tuple[float, ...] = (1.0, 0.3)
    """Offered to every arm, times that; over all seeds each takes what leaves calibration images most robust after the
    last epoch."""
    test_steps: int = 20
    """Of the attacks of testing, with two restarts."""

    def attack(self, seed: int = 0) -> Pgd:
        """Of training."""
        return Pgd(Ball(self.eps), self.steps, seed=seed)


@dataclass(frozen=True)
class Arm:
    """What trains, and how."""

    choose: str
    """Which layers: a word of this module."""
    feature_weight: float = 0.0
    fast: bool = False
    rates: tuple[float, ...] | None = None
    """Times the plan's learning rate; None: those that the plan offers."""
    again: bool = True
    """Whether layers are chosen anew."""


def started(folder: Path, *, task: Mapping[str, Any], plan: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Trains everything adversarially; the network stays in the folder."""
    own, how = ImageTask.of(task), Plan(**plan)
    parts, model = own.parts(seed), own.untrained(seed)
    settings = HardenSettings(
        attack=how.attack(seed), feature_weight=0.0, training=_training(own, how.start_epochs, how.learning_rate, seed)
    )
    made = harden(model, _everything(model), *parts.train.tensors(), settings)
    file = store(model, folder, ["started", dict(task), dict(plan), seed])
    return {"last": file, "best": file, "trained": 0, "losses": list(made.losses)}


def hardened(
    folder: Path,
    *,
    task: Mapping[str, Any],
    plan: Mapping[str, Any],
    seed: int,
    file: str,
    arm: Mapping[str, Any],
    rate: float,
) -> dict[str, Any]:
    """One arm from the start of its seed; the networks of the last epoch and of the best on calibration images stay in
    the folder. No test image is looked at.

    `rate`: times the plan's learning rate. A training that diverges leaves no network.
    """
    own, how, asked = ImageTask.of(task), Plan(**plan), Arm(**arm)
    parts, model = own.parts(seed), own.trained(folder / file)
    settings = HardenSettings(
        attack=how.attack(seed),
        feature_weight=asked.feature_weight,
        fast=asked.fast,
        every=how.every,
        training=_training(own, how.epochs, how.learning_rate * rate, seed),
    )
    calibration = parts.calibration.tensors()

    def watch(network: nn.Module) -> float:
        return robust_accuracy(network, *calibration, how.attack(seed)).accuracy

    choosing = _Choosing(parts, how, asked.choose, seed)
    again = choosing if asked.again and asked.choose not in (ALL, EVERY) else None
    first = choosing(model)
    try:
        with torch.random.fork_rng(devices=[]):
            made = harden(model, first, *parts.train.tensors(), settings, reselect=again, watch=watch)
    except Diverged as error:
        return {**_diverged(first, error), "losses": [], "watched": [0.0]}
    key = ["hardened", dict(task), dict(plan), seed, file, dict(arm), rate]
    last = store(model, folder, [*key, "last"])
    if made.best_epoch != how.epochs - 1:
        model.load_state_dict(dict(made.best or {}))
    return {
        "last": last,
        "best": last if made.best_epoch == how.epochs - 1 else store(model, folder, [*key, "best"]),
        "trained": fmean(sum(layer.size for layer in each.chosen) for _, each in made.selections),
        "selections": [[epoch, list(selection.names)] for epoch, selection in made.selections],
        "losses": list(made.losses),
        "watched": list(made.watched),
        "best_epoch": made.best_epoch,
    }


def rifted(
    folder: Path, *, task: Mapping[str, Any], plan: Mapping[str, Any], seed: int, file: str, choose: str
) -> dict[str, Any]:
    """Clean fine-tuning of few layers, taken back as far as robustness needs it; `share` is what is kept of it."""
    own, how = ImageTask.of(task), Plan(**plan)
    parts, model = own.parts(seed), own.trained(folder / file)
    chosen = _Choosing(parts, how, choose, seed)(model)
    settings = RiftSettings(_training(own, how.epochs, how.learning_rate / 10, seed), how.attack(seed))
    try:
        made = rift(model, chosen, *parts.train.tensors(), settings, calibration=parts.calibration.tensors())
    except Diverged as error:
        return {**_diverged(chosen, error), "share": 0.0}
    place = store(model, folder, ["rifted", dict(task), dict(plan), seed, file, choose])
    return {"last": place, "best": place, "share": made.share, **_of(chosen)}


def _diverged(chosen: Selection, error: Diverged) -> dict[str, Any]:
    return {"last": None, "best": None, **_of(chosen), "diverged": str(error)}


def _of(chosen: Selection) -> dict[str, Any]:
    return {"trained": sum(layer.size for layer in chosen.chosen), "selections": [[0, list(chosen.names)]]}


def measured(
    folder: Path, *, task: Mapping[str, Any], plan: Mapping[str, Any], seed: int, file: str, checked: bool
) -> dict[str, Any]:
    """Accuracy on test images: clean, under attacks on the loss and on the features of every convolution, and under the
    worst of both; if `checked`, what suggests that gradients are masked."""
    own, how = ImageTask.of(task), Plan(**plan)
    model = own.trained(folder / file)
    x, y = own.parts(seed).test.tensors()
    loss = Pgd(Ball(how.eps), how.test_steps, restarts=2, seed=1 + seed)
    features = FeatureAttack(tuple(layer.name for layer in _candidates(model)), Pgd(Ball(how.eps), how.test_steps))
    found = [robust_accuracy(model, x, y, attack) for attack in (loss, features)]
    return {
        "clean": clean_accuracy(model, x, y).accuracy,
        "loss": found[0].accuracy,
        "features": found[1].accuracy,
        "robust": worst_case(*found).accuracy,
        "flags": list(sanity(model, x[:100], y[:100], loss).raised) if checked else [],
    }


class _Choosing:
    """Chooses layers on a batch of training images, and draws others every time where chance chooses."""

    def __init__(self, parts: ImageParts, plan: Plan, choose: str, seed: int) -> None:
        self.batch = next(parts.train.take(range(SIZE)).batches(SIZE))  # type: ignore[arg-type]
        self.plan, self.choose, self.seed, self.calls = plan, choose, seed, 0
        self.layers: tuple[Layer, ...] = ()  # the same at every call

    def __call__(self, model: nn.Module) -> Selection:
        layers = self.layers = self.layers or _candidates(model)
        self.calls += 1
        count = max(1, math.floor(self.plan.share * len(layers) + 0.5))
        if self.choose == ALL:
            return _everything(model)
        if self.choose == EVERY:
            return Selection.of(layers, names=[layer.name for layer in layers], allow_total=True)
        if self.choose == RANDOM:
            return select(layers, f"random:{count}:seed={1000 * self.seed + self.calls}")
        if self.choose == CAPACITY:
            settings = RobustCapacity(self.plan.eps, self.plan.steps)
            return select(score_robust_capacity(self._evidence(model), layers, settings), f"bottom:{count}")
        scores = self.fragility(model, layers)
        critical = select(scores, f"top:{count}")
        if self.choose == ALIKE:
            return _alike(critical, 1000 * self.seed + self.calls)
        return critical if self.choose == CRITICAL else select(scores, f"bottom:{count}")

    def fragility(self, model: nn.Module, layers: tuple[Layer, ...]) -> LayerScores:
        """CLAT's criticality."""
        return score_feature_fragility(self._evidence(model), layers, FeatureFragility(self.plan.eps, self.plan.steps))

    def _evidence(self, model: nn.Module) -> Evidence:
        return Evidence(model=model, data=[self.batch], loss=image_loss, granularity="conv")


def _candidates(model: nn.Module) -> tuple[Layer, ...]:
    """Convolutions in forward order; the output layer is left out, as it has no features after it."""
    return named_layers(model, "conv")


def _alike(critical: Selection, seed: int) -> Selection:
    """As many layers as the critical ones, none of them, each as near in size to one of these as is left; of equally
    near ones the seed draws."""
    left = [layer for layer in critical.layers if layer.name not in critical.names]
    drawn = np.random.default_rng(seed).permutation(len(left))
    chosen: list[str] = []
    for one in critical.chosen:
        places = [place for place in drawn if left[place].name not in chosen]
        chosen.append(left[min(places, key=lambda place: abs(left[place].size - one.size))].name)
    return Selection.of(critical.layers, names=chosen)


def _everything(model: nn.Module) -> Selection:
    """All parameters as one layer: batch norms and the output layer train, too."""
    own = parameters_of(model)
    whole = Layer(ALL, None, ALL, tuple(own), sum(value.numel() for value in own.values()))
    return Selection.of([whole], names=[ALL], allow_total=True)


def _training(task: ImageTask, epochs: int, rate: float, seed: int) -> ImageTraining:
    return replace(task.training, epochs=epochs, learning_rate=rate, seed=seed)


DO: dict[str, Callable[..., dict[str, Any]]] = {
    "started": started,
    "hardened": hardened,
    "rifted": rifted,
    "measured": measured,
}


def compute(folder: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """One cell: `do` says which of the functions above, the other fields are its arguments."""
    quiet_libraries()
    torch.set_num_threads(1)
    return DO[fields["do"]](Path(folder), **{key: value for key, value in fields.items() if key != "do"})


def fields_of(value: Plan | Arm) -> dict[str, Any]:
    """As plain JSON, for a cell."""
    return asdict(value)
