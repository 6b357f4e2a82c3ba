"""Layer-wise feature analysis (Jebreel et al., PAKDD 2023) put to the test: do poisoned inputs stand out at the layers
where classes come together, and more there than elsewhere?"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.errors import UnknownName
from keylayers.measures.backdoor import LEAST_SUCCESS
from keylayers.recipes.image_attacks import Backdoor
from keylayers.recipes.image_tasks import ImageTask, cifar_task, mnist_task
from keylayers.recipes.lab import Lab
from keylayers.recipes.lfa_cells import ALONE, compute
from keylayers.recipes.places import real_places
from keylayers.runs import RunFolder
from keylayers.studies.cells import workers
from keylayers.training.images import ImageTraining

CONSISTENT = "label-consistent"
ANY = "any one block, at random"
"""The mean over all blocks, each alone: what a choice by lot gives."""


@dataclass(frozen=True)
class Watched:
    """A task and the attacks on it."""

    task: ImageTask
    attacks: Mapping[str, Backdoor]
    seeds: int = 10
    """Each has its own split, network and poisoned images."""


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    watched: tuple[Watched, ...] = field(default_factory=lambda: (digits(),))


@dataclass(frozen=True)
class Results:
    """What one task gave, by attack and seed; the attack None is a clean model, shown a patch."""

    watched: Watched
    victims: Mapping[str | None, tuple[Mapping[str, Any], ...]]
    screened: Mapping[str | None, tuple[Mapping[str, Any], ...]]

    def works(self, attack: str, seed: int) -> bool:
        """Whether an attack succeeded well enough for its detection to be judged."""
        return self.victims[attack][seed]["figures"]["attack_success_rate"][0] >= LEAST_SUCCESS

    def judged(self, attack: str) -> list[int]:
        """Seeds in which it did."""
        return [seed for seed in range(self.watched.seeds) if self.works(attack, seed)]

    @property
    def attacks(self) -> list[str]:
        """Those that worked in at least two seeds."""
        return [name for name in self.watched.attacks if len(self.judged(name)) > 1]

    def values(self, arm: str, what: str, attack: str | None) -> Float[np.ndarray, " seeds"]:
        """A measure of one arm per judged seed; of a clean model per seed."""
        seeds = range(self.watched.seeds) if attack is None else self.judged(attack)
        found = [self.screened[attack][seed]["arms"] for seed in seeds]
        if arm != ANY:
            return np.array([one[arm][what] for one in found])
        blocks = [name for name in found[0] if name.startswith(ALONE.partition("{")[0]) and name.endswith("alone")]
        return np.array([np.mean([one[name][what] for name in blocks]) for one in found])

    def over_attacks(self, arm: str, what: str) -> Float[np.ndarray, " seeds"]:
        """Per seed, the mean over the attacks that worked in it: what a seed does to all attacks is counted once."""
        per_seed = []
        for seed in range(self.watched.seeds):
            own = [float(self.values(arm, what, name)[self.judged(name).index(seed)]) for name in self.attacks
                   if self.works(name, seed)]  # fmt: skip
            if own:
                per_seed.append(np.mean(own))
        return np.array(per_seed)


def digits(seeds: int = 10) -> Watched:
    """The bundled images of digits, on which a model takes two seconds."""
    attacks = {
        "patch": Backdoor("patch"),
        "blend": Backdoor("blend"),
        "sinusoid": Backdoor("sinusoid", 2.0),
        "warp": Backdoor("warp", 2.0),
        CONSISTENT: Backdoor(CONSISTENT, 10.0, 0.5),
        "input-aware": Backdoor("input-aware", 6.0),
    }
    return Watched(ImageTask("digits"), attacks, seeds)


def real() -> tuple[Watched, ...]:
    """MNIST, and CIFAR-10 with a published ResNet-20, where $KEYLAYERS_MODELS and $KEYLAYERS_DATA are set."""
    if (places := real_places()) is None:
        return ()
    sizes = {"reference": 1000, "calibration": 500}
    mnist = mnist_task(places, {"train": 3000, "test": 1000, **sizes}, ImageTraining(epochs=4))
    cifar = cifar_task(places, {"train": 4000, "test": 500, **sizes}, ImageTraining(epochs=4, learning_rate=0.02))
    attacks = {"patch": Backdoor("patch"), "blend": Backdoor("blend"), "sinusoid": Backdoor("sinusoid", 1.5),
               "warp": Backdoor("warp", 3.0)}  # fmt: skip
    return Watched(mnist, attacks, 5), Watched(cifar, attacks, 3)


def reproduce(scale: Scale, run: RunFolder, processes: int = 2) -> Iterator[tuple[Results, ...]]:
    """What is known after every task; what is finished is kept in the run folder, cell by cell."""
    done: list[Results] = []
    with workers(processes) as pool:
        lab = Lab(run, compute, pool)
        for watched in scale.watched:
            done.append(results(lab, watched))
            yield tuple(done)


def results(lab: Lab, watched: Watched) -> Results:
    """Models under every attack and none, then every screen of each."""
    task, seeds = watched.task.fields(), range(watched.seeds)
    clean = lab.ask("make_victim", [{"task": task, "seed": seed, "attack": None} for seed in seeds])
    attacks = {name: asdict(one) for name, one in watched.attacks.items()}
    places = [(name, seed) for name in attacks for seed in seeds]
    asked = [
        {
            "task": task,
            "seed": seed,
            "attack": attacks[name],
            **({"benign": clean[seed]["file"]} if needs(name) else {}),
        }
        for name, seed in places
    ]
    made: dict[str | None, list[dict[str, Any]]] = {None: clean, **{name: [] for name in attacks}}
    for (attack, _), one in zip(places, lab.ask("make_victim", asked), strict=True):
        made[attack].append(one)
    everyone = [(name, seed) for name in made for seed in seeds]
    asked = [
        {
            "task": task,
            "seed": seed,
            "attack": None if name is None else attacks[name],
            "file": made[name][seed]["file"],
        }
        for name, seed in everyone
    ]
    found: dict[str | None, list[dict[str, Any]]] = {name: [] for name in made}
    for (name, _), one in zip(everyone, lab.ask("screened", asked), strict=True):
        found[name].append(one)
    return Results(watched, {n: tuple(e) for n, e in made.items()}, {n: tuple(e) for n, e in found.items()})


def needs(attack: str) -> bool:
    """Whether an attack needs a model that was trained on clean images."""
    return attack == CONSISTENT


def scale_of(name: str) -> Scale:
    """The scale of that name. Raises UnknownName."""
    scales = {
        "smoke": lambda: (digits(3),),
        "small": lambda: (digits(), *real()),
        "full": lambda: (digits(30), *real()),
    }
    if name not in scales:
        raise UnknownName("scale", name, scales)
    return Scale(scales[name]())
