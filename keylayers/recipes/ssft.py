"""Suppressing model shortcuts (Yang et al., ICASSP 2023) put to the test: does turning one skip connection down make
fine-tuning remove a backdoor, and which skip?"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.errors import UnknownName
from keylayers.measures.backdoor import LEAST_SUCCESS
from keylayers.recipes.lab import Lab
from keylayers.recipes.lfa import CONSISTENT, Watched, digits, needs, real
from keylayers.recipes.ssft_cells import CLEAN, ORACLE, OWN, RELEASED, Recipe, best, compute
from keylayers.runs import RunFolder
from keylayers.studies.cells import workers

RANDOM, MIDDLE, HINDSIGHT = "any one skip, at random", "skips of the middle stage", "best in hindsight"
ALONE, WHOLE, AS_RELEASED = "fine-tuning alone, each stage", "fine-tuning alone, everything", "as released (oracle)"
RULES = (ORACLE, OWN, CLEAN)
TWO = "the two most blamed by an own trigger"


@dataclass(frozen=True)
class Cleansing:
    """A task, its attacks, and how cleansed models are tuned."""

    watched: Watched
    recipe: Recipe


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    cleansings: tuple[Cleansing, ...] = field(default_factory=lambda: (of_digits(),))


@dataclass(frozen=True)
class Results:
    """What one task gave, by attack and judged seed."""

    cleansing: Cleansing
    skips: tuple[str, ...]
    stages: tuple[str, ...]
    """Of each skip."""
    success: Mapping[str, tuple[float, ...]]
    """Attack -> attack success before any defence, every seed."""
    blamed: Mapping[tuple[str, int], Mapping[str, Any]]
    """(attack, seed) -> scores of every skip by each rule."""
    outcomes: Mapping[tuple[str, int, str], Mapping[str, Any]]
    """(attack, seed, skip or `STAGE alone` or another arm) -> the judgement."""

    @property
    def judged(self) -> list[tuple[str, int]]:
        """Attacks and seeds in which the attack works."""
        return list(self.blamed)

    def value(self, place: tuple[str, int], arm: str, stage: str, what: str) -> float:
        """A figure of one arm on one victim: `stage` before, after or later; `what` a share. NaN where a rule blames
        no skip."""
        keys = [self.outcomes[(*place, name)] for name in self.members(place, arm)]
        if not keys:
            return float("nan")
        values = [one["attacked"][stage][what][0] for one in keys]
        return float(min(values)) if arm == HINDSIGHT else float(np.mean(values))

    def members(self, place: tuple[str, int], arm: str) -> list[str]:
        """Keys of the outcomes that an arm is the mean of."""
        if arm in RULES or arm == TWO:
            scores = self.blamed[place]["scores"][OWN if arm == TWO else arm]
            return [] if scores is None else [TWO if arm == TWO else self.skips[best(scores)[0]]]
        middle = sorted(set(self.stages), key=self.stages.index)
        return {
            RANDOM: list(self.skips),
            HINDSIGHT: list(self.skips),
            MIDDLE: [s for s, stage in zip(self.skips, self.stages, strict=True) if stage == middle[len(middle) // 2]],
            ALONE: [f"{stage} alone" for stage in middle],
        }.get(arm, [arm])

    def per_seed(self, arm: str, stage: str, what: str, attack: str | None = None) -> Float[np.ndarray, " seeds"]:
        """Per seed, the mean over attacks (or of one): what a seed does to all attacks is counted once."""
        seeds = sorted({seed for _, seed in self.judged})
        found = []
        for seed in seeds:
            places = [place for place in self.judged if place[1] == seed and attack in (None, place[0])]
            values = [value for place in places if np.isfinite(value := self.value(place, arm, stage, what))]
            if places:
                found.append(float(np.mean(values)) if values else float("nan"))
        return np.array(found)


def of_digits(seeds: int = 5) -> Cleansing:
    """The bundled digits."""
    return Cleansing(_without_consistent(digits(seeds)), Recipe(40, 0.05, 50))


def of_real(seeds: int = 2) -> tuple[Cleansing, ...]:
    """MNIST and CIFAR-10, where they are there: a trigger in one place and one all over the image."""
    made = []
    for watched in map(_without_consistent, real()):
        attacks = {name: watched.attacks[name] for name in ("patch", "blend")}
        made.append(Cleansing(Watched(watched.task, attacks, seeds), Recipe(5, 0.02, 50)))
    return tuple(made)


def _without_consistent(watched: Watched) -> Watched:
    """The attacks that need no benign model: on these images the other succeeds too seldom to be judged."""
    attacks = {name: attack for name, attack in watched.attacks.items() if name != CONSISTENT}
    return Watched(watched.task, attacks, watched.seeds)


def reproduce(scale: Scale, run: RunFolder, processes: int = 2) -> Iterator[tuple[Results, ...]]:
    """What is known after every task; what is finished is kept in the run folder, cell by cell."""
    done: list[Results] = []
    with workers(processes) as pool:
        lab = Lab(run, compute, pool)
        for cleansing in scale.cleansings:
            done.append(results(lab, cleansing))
            yield tuple(done)


def results(lab: Lab, cleansing: Cleansing) -> Results:
    """Victims, the skips that each rule blames, and every suppression, all judged by who holds the trigger."""
    watched = cleansing.watched
    task, seeds = watched.task.fields(), range(watched.seeds)
    attacks = {name: asdict(one) for name, one in watched.attacks.items()}
    clean = lab.ask("make_victim", [{"task": task, "seed": seed, "attack": None} for seed in seeds])
    every = [(name, seed) for name in attacks for seed in seeds]
    assert not any(needs(name) for name in attacks)
    made = lab.ask("make_victim", [{"task": task, "seed": seed, "attack": attacks[name]} for name, seed in every])
    victims = dict(zip(every, made, strict=True))
    success = {
        name: tuple(victims[name, seed]["figures"]["attack_success_rate"][0] for seed in seeds) for name in attacks
    }
    places = [(name, seed) for name, seed in every if success[name][seed] >= LEAST_SUCCESS]
    shared = {
        (name, seed): {"task": task, "seed": seed, "attack": attacks[name], "file": victims[name, seed]["file"]}
        for name, seed in places
    }
    blamed = dict(zip(places, lab.ask("blamed", [shared[place] for place in places]), strict=True))
    found = lab.ask("skips", [{"task": task}])[0]
    skips, stages = tuple(found["names"]), tuple(found["stages"])
    ours = asdict(cleansing.recipe)
    keys, asked = [], []
    for place in places:
        control = clean[place[1]]["file"]
        arms: dict[str, dict[str, Any]] = {
            skip: {"skips": [skip], "factor": 0.0, "tune": "stage", "recipe": ours} for skip in skips
        }
        for skip, stage in zip(skips, stages, strict=True):
            arms.setdefault(f"{stage} alone", {"skips": [skip], "factor": 1.0, "tune": "stage", "recipe": ours})
        arms[WHOLE] = {"skips": [skips[0]], "factor": 1.0, "tune": "all", "recipe": ours}
        if (own := blamed[place]["scores"][OWN]) is not None:
            pair = [skips[index] for index in best(own, 2)]
            arms[TWO] = {"skips": pair, "factor": 0.0, "tune": "stage", "recipe": ours}
        worst = blamed[place]["scores"][ORACLE]
        if worst is not None:
            arms[AS_RELEASED] = {
                "skips": [skips[best(worst)[0]]], "factor": 0.0, "tune": "stage", "recipe": asdict(RELEASED),
            }  # fmt: skip
        for name, arm in arms.items():
            keys.append((*place, name))
            asked.append({**shared[place], "control": control, **arm})
    outcomes = dict(zip(keys, lab.ask("suppressed", asked), strict=True))
    return Results(cleansing, skips, stages, success, blamed, outcomes)


def scale_of(name: str) -> Scale:
    """The scale of that name. Raises UnknownName."""
    scales = {"smoke": (of_digits(2),), "small": (of_digits(), *of_real()), "full": (of_digits(20), *of_real(5))}
    if name not in scales:
        raise UnknownName("scale", name, scales)
    return Scale(scales[name])
