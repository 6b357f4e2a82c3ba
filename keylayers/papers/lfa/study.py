"""Layer-wise feature analysis (Jebreel et al., PAKDD 2023) put to the test: do poisoned inputs stand out at the layers
where classes come together, and more there than elsewhere?"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.errors import UnknownName
from keylayers.measures.backdoor import LEAST_SUCCESS
from keylayers.papers.lfa.cells import ALONE, compute
from keylayers.runs import RunFolder
from keylayers.studies.backdoor_tasks import BackdoorTask, digits, diverged, needs, real
from keylayers.studies.lab import Lab
from keylayers.studies.runner import workers

ANY = "any one block, at random"
"""The mean over all blocks, each alone: what a choice by lot gives."""


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    watched: tuple[BackdoorTask, ...] = field(default_factory=lambda: (digits(),))


@dataclass(frozen=True)
class Results:
    """What one task gave, by attack and seed; the attack None is a clean model, shown a patch."""

    watched: BackdoorTask
    victims: Mapping[str | None, tuple[Mapping[str, Any], ...]]
    """One of every seed; with `diverged` if its training broke off."""
    screened: Mapping[str | None, Mapping[int, Mapping[str, Any]]]
    """By judged seed, of `attacks` and None; nothing where no attack works."""

    def works(self, attack: str | None, seed: int) -> bool:
        """Whether an attack succeeded well enough for its detection to be judged; of None, whether there is a model."""
        victim = self.victims[attack][seed]
        if diverged(victim):
            return False
        return attack is None or victim["figures"]["attack_success_rate"][0] >= LEAST_SUCCESS

    def judged(self, attack: str | None) -> list[int]:
        """Seeds in which it did."""
        return [seed for seed in range(self.watched.seeds) if self.works(attack, seed)]

    def broken(self, attack: str | None) -> int:
        """Seeds in which training diverged."""
        return sum(map(diverged, self.victims[attack]))

    @property
    def attacks(self) -> list[str]:
        """Those that worked in at least two seeds."""
        return [name for name in self.watched.attacks if len(self.judged(name)) > 1]

    def values(self, arm: str, what: str, attack: str | None) -> Float[np.ndarray, " seeds"]:
        """A measure of one arm per judged seed; of a clean model per seed in which there is one."""
        found = [self.screened[attack][seed]["arms"] for seed in self.judged(attack)]
        names = self.alone if arm == ANY else [arm]
        return np.array([np.mean([one[name][what] for name in names]) for one in found])

    @property
    def alone(self) -> list[str]:
        """The arms of one block each."""
        arms = next(one["arms"] for seeds in self.screened.values() for one in seeds.values())
        return [name for name in arms if name.startswith(ALONE.partition("{")[0]) and name.endswith("alone")]

    def weights(self, arm: str) -> list[Mapping[str, float]]:
        """Layers that an arm weighs and by how much, for every judged victim and class."""
        screens = [self.screened[attack][seed] for attack in self.attacks for seed in self.judged(attack)]
        return [own for one in screens for own in one["weights"][arm].values()]

    def over_attacks(self, arm: str, what: str) -> Float[np.ndarray, " seeds"]:
        """Per seed, the mean over the attacks that worked in it: what a seed does to all attacks is counted once."""
        per_seed = []
        for seed in range(self.watched.seeds):
            own = [float(self.values(arm, what, name)[self.judged(name).index(seed)]) for name in self.attacks
                   if self.works(name, seed)]  # fmt: skip
            if own:
                per_seed.append(np.mean(own))
        return np.array(per_seed)


def reproduce(scale: Scale, run: RunFolder, processes: int = 2) -> Iterator[tuple[Results, ...]]:
    """What is known after every task; what is finished is kept in the run folder, cell by cell."""
    done: list[Results] = []
    with workers(processes) as pool:
        lab = Lab(run, compute, pool)
        for watched in scale.watched:
            done.append(results(lab, watched))
            yield tuple(done)


def results(lab: Lab, watched: BackdoorTask) -> Results:
    """Models under every attack and none, then every screen of those that are judged."""
    task, seeds = watched.task.fields(), range(watched.seeds)
    clean = lab.ask("make_victim", [{"task": task, "seed": seed, "attack": None} for seed in seeds])
    attacks = {name: asdict(one) for name, one in watched.attacks.items()}
    able = [(name, seed) for name in attacks for seed in seeds if not (needs(name) and diverged(clean[seed]))]
    asked = [
        {
            "task": task,
            "seed": seed,
            "attack": attacks[name],
            **({"benign": clean[seed]["file"]} if needs(name) else {}),
        }
        for name, seed in able
    ]
    made = dict(zip(able, lab.ask("make_victim", asked), strict=True))
    none = {"file": None, "figures": None, "diverged": "the clean model that the attack needs did"}
    victims: dict[str | None, tuple[Mapping[str, Any], ...]] = {None: tuple(clean)}
    victims |= {name: tuple(made.get((name, seed), none) for seed in seeds) for name in attacks}
    known = Results(watched, victims, {})
    shown = [None, *known.attacks] if known.attacks else []
    places = [(name, seed) for name in shown for seed in known.judged(name)]
    asked = [
        {
            "task": task,
            "seed": seed,
            "attack": None if name is None else attacks[name],
            "file": victims[name][seed]["file"],
        }
        for name, seed in places
    ]
    screened: dict[str | None, dict[int, Mapping[str, Any]]] = {name: {} for name in shown}
    for (name, seed), one in zip(places, lab.ask("screens", asked), strict=True):
        screened[name][seed] = one
    return replace(known, screened=screened)


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
