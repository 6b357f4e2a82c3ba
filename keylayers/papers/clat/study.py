"""CLAT (Gopal et al., ICML 2025) put to the test: does adversarial training of the few most fragile layers add more
robustness than training others, or all?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.errors import UnknownName
from keylayers.measures.blow_ups import best_rate, blown_up
from keylayers.papers.clat.cells import (
    ALIKE,
    ALL,
    CAPACITY,
    CRITICAL,
    EVERY,
    LEAST,
    NOTHING,
    RANDOM,
    Arm,
    Plan,
    compute,
    fields_of,
)
from keylayers.runs import RunFolder
from keylayers.studies.image_task import ImageTask, cifar_task, mnist_task
from keylayers.studies.lab import Lab
from keylayers.studies.real_data import real_data_folders
from keylayers.studies.retraining import BLEW_UP
from keylayers.studies.runner import workers
from keylayers.training.images import ImageTraining

ARMS = {
    "CLAT": Arm(CRITICAL, 1.0),
    "CLAT, fast": Arm(CRITICAL, 1.0, fast=True),
    "CLAT, chosen once": Arm(CRITICAL, 1.0, again=False),
    "CLAT, a tenth of the rate": Arm(CRITICAL, 1.0, rates=(0.1,)),
    "critical layers, no feature term": Arm(CRITICAL),
    "random layers": Arm(RANDOM, 1.0),
    "random layers, same size": Arm(ALIKE, 1.0),
    "least critical layers": Arm(LEAST, 1.0),
    "every convolution": Arm(EVERY, 1.0),
    "everything": Arm(ALL),
    "everything, a tenth of the rate": Arm(ALL, rates=(0.1,)),
}
"""Every arm goes on from the same adversarially trained network, for the same epochs; frozen modules keep their running
statistics in all. With the feature term a step takes two attacks, fast and without it one."""

RIFT = {"RiFT": CAPACITY, "RiFT on critical layers": CRITICAL}
"""Clean fine-tuning of few layers instead, by what chooses them."""

START = "start"


@dataclass(frozen=True)
class Hardening:
    """A task and what its arms share."""

    task: ImageTask
    plan: Plan
    seeds: int = 5


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    hardenings: tuple[Hardening, ...] = field(default_factory=lambda: (digits(),))


@dataclass(frozen=True)
class Results:
    """What one task gave, by arm and seed."""

    hardening: Hardening
    arms: Mapping[str, tuple[Mapping[str, Any], ...]]
    """Arm -> per seed, `last` and `best` with accuracies; the start's are both its own."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Arm -> times the plan's learning rate, as chosen on calibration images."""

    def values(self, arm: str, what: str, when: str = "last") -> Float[np.ndarray, " seeds"]:
        """Accuracy per seed: `clean`, `robust`, `loss` or `features`; after the last epoch, or the best one."""
        return np.array([one[when][what] for one in self.arms[arm]])


def digits(seeds: int = 5, epochs: int = 10) -> Hardening:
    """The bundled digits; eps 0.15 of the grey scale."""
    return Hardening(
        ImageTask("digits", training=ImageTraining(batch_size=100)),
        Plan(0.15, 7, start_epochs=epochs, epochs=epochs, every=max(1, epochs // 2), share=0.05, learning_rate=0.05),
        seeds,
    )


def real() -> tuple[Hardening, ...]:
    """MNIST, and CIFAR-10 from a published ResNet-20, where $KEYLAYERS_MODELS and $KEYLAYERS_DATA are set.

    Each sized for two cores and an hour: hundreds of images and few epochs, far from where robust training overfits.
    """
    if (places := real_data_folders()) is None:
        return ()
    sizes, batches = {"reference": 10, "calibration": 100}, ImageTraining(batch_size=100)
    mnist = mnist_task(places, {"train": 600, **sizes, "test": 200}, batches)
    cifar = cifar_task(places, {"train": 500, **sizes, "test": 150}, batches)
    # deviates: the paper's eps on CIFAR-10 is 8/255; here 4/255, because after so little training on so few images
    # nothing is right under attacks of 8/255, and then no arm differs from another.
    return (
        Hardening(mnist, Plan(0.15, 5, 16, 4, 2, 0.05, 0.05), 3),
        Hardening(cifar, Plan(4 / 255, 4, 10, 3, 2, 0.05, 0.02, test_steps=10), 3),
    )


def reproduce(scale: Scale, run: RunFolder, processes: int = 2) -> Iterator[tuple[Results, ...]]:
    """What is known after every task; what is finished is kept in the run folder, cell by cell."""
    done: list[Results] = []
    with workers(processes) as pool:
        lab = Lab(run, compute, pool)
        for hardening in scale.hardenings:
            done.append(results(lab, hardening))
            yield tuple(done)


def results(lab: Lab, hardening: Hardening) -> Results:
    """The start of every seed, then every arm from it."""
    task, plan, seeds = hardening.task.fields(), fields_of(hardening.plan), range(hardening.seeds)
    shared = [{"task": task, "plan": plan, "seed": seed} for seed in seeds]
    starts = lab.ask("started", shared)
    given = [{**one, "file": start["last"]} for one, start in zip(shared, starts, strict=True)]
    rates, trained = _hardened(lab, hardening, given)
    made = {(START, seed): starts[seed] for seed in seeds}
    made |= {(name, seed): trained[name, rates[name], seed] for name in ARMS for seed in seeds}
    others = [(name, seed) for seed in seeds for name in RIFT]
    asked = [{**given[seed], "choose": RIFT[name]} for name, seed in others]
    made |= dict(zip(others, lab.ask("rifted", asked), strict=True))
    figures = _measured(lab, shared, made)
    arms = {name: tuple(figures[name, seed] for seed in seeds) for name in (START, *ARMS, *RIFT)}
    return Results(hardening, arms, rates)


def _measured(
    lab: Lab, shared: Sequence[Mapping[str, Any]], made: Mapping[tuple[str, int], Mapping[str, Any]]
) -> dict[tuple[str, int], dict[str, Any]]:
    """(arm, seed) -> what it gave, with figures on test images in place of its networks; the last ones are checked."""
    last, best = ({one[when]: seed for (_, seed), one in made.items() if one[when]} for when in ("last", "best"))
    files = {**{file: (best[file], False) for file in best}, **{file: (last[file], True) for file in last}}
    asked = [{**shared[seed], "file": file, "checked": checked} for file, (seed, checked) in files.items()]
    figures = dict(zip(files, lab.ask("measured", asked), strict=True))

    def of(file: str | None) -> dict[str, Any]:
        return dict(NOTHING) if file is None else figures[file]

    return {place: {**one, "last": of(one["last"]), "best": of(one["best"])} for place, one in made.items()}


NOTHING_RIGHT = 1.0
"""Share of images that are wrong where nothing is right: what an arm gains is counted from there."""
LOST = 0.5
"""Of the right ones of the arm's other seeds, on few images: a training that lacks more of them blew up."""

Trained = dict[tuple[str, float, int], dict[str, Any]]
"""(arm, rate, seed) -> what it gave."""


def _hardened(lab: Lab, hardening: Hardening, given: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], Trained]:
    """The rate that leaves each arm most robust on calibration images over all seeds, of those at which the fewest
    trainings blew up; and what each gave at every rate with every seed."""
    offered = {name: arm.rates or hardening.plan.rates for name, arm in ARMS.items()}
    seeds = range(hardening.seeds)
    trained = _each(lab, given, [(name, rate, seed) for seed in seeds for name in ARMS for rate in offered[name]])
    rates = {}
    for name in ARMS:
        arm = {rate: [trained[name, rate, seed] for seed in seeds] for rate in offered[name]}
        wrong = {rate: [1 - made["watched"][-1] for made in each] for rate, each in arm.items()}
        reasons = {
            rate: [made.get("diverged") or reason for made, reason in zip(arm[rate], each, strict=True)]
            for rate, each in blown_up(wrong, NOTHING_RIGHT, LOST).items()
        }
        rate = rates[name] = best_rate(wrong, reasons)
        for seed in seeds:
            trained[name, rate, seed] = {**trained[name, rate, seed], BLEW_UP: reasons[rate][seed]}
    return rates, trained


def _each(lab: Lab, given: Sequence[Mapping[str, Any]], places: Sequence[tuple[str, float, int]]) -> Trained:
    asked = [{**given[seed], "arm": fields_of(ARMS[name]), "rate": rate} for name, rate, seed in places]
    return dict(zip(places, lab.ask("hardened", asked), strict=True))


def scale_of(name: str) -> Scale:
    """The scale of that name. Raises UnknownName."""
    scales = {"smoke": (digits(2, 4),), "small": (digits(), *real()), "full": (digits(20, 40), *real())}
    if name not in scales:
        raise UnknownName("scale", name, scales)
    return Scale(scales[name])
