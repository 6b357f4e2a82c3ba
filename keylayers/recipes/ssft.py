"""Suppressing model shortcuts (Yang et al., ICASSP 2023) put to the test: does turning one skip connection down make
fine-tuning remove a backdoor, and which skip?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
WHOLE, AS_RELEASED = "fine-tuning alone, everything", "as released (oracle)"
RULES = (ORACLE, OWN, CLEAN)
TWO = "the two most blamed by an own trigger"
TWIN = "the same tuning, nothing silenced"
SUCCESS = "attack_success_rate"


@dataclass(frozen=True)
class Cleansing:
    """A task, its attacks, and how cleansed models are tuned."""

    watched: Watched
    recipe: Recipe


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    cleansings: tuple[Cleansing, ...] = field(default_factory=lambda: (of_digits(),))


Place = tuple[str, int]
"""An attack and a seed: a victim."""


@dataclass(frozen=True)
class Results:
    """What one task gave, by attack and judged seed."""

    cleansing: Cleansing
    skips: tuple[str, ...]
    stages: tuple[str, ...]
    """Of each skip."""
    success: Mapping[str, tuple[float, ...]]
    """Attack -> attack success before any defence, every seed."""
    blamed: Mapping[Place, Mapping[str, Any]]
    """Scores of every skip by each rule; None by a rule that blames none."""
    outcomes: Mapping[tuple[str, int, str], Mapping[str, Any]]
    """(attack, seed, key) -> the judgement; keys are skips, `STAGE alone`, TWO, WHOLE, AS_RELEASED."""
    costs: Mapping[tuple[int, str], Mapping[str, float]]
    """(seed, skip) -> accuracy of a model that nobody attacked, before and after the same was done to it."""

    @property
    def judged(self) -> list[Place]:
        """Attacks and seeds in which the attack works."""
        return list(self.blamed)

    def keys(self, place: Place, arm: str) -> list[str]:
        """Of the outcomes that an arm is the mean of; none where a rule blames no skip."""
        if arm in (*RULES, TWO, AS_RELEASED):
            scores = self.blamed[place]["scores"][{TWO: OWN, AS_RELEASED: ORACLE}.get(arm, arm)]
            return [] if scores is None else [self.skips[best(scores)[0]] if arm in RULES else arm]
        if arm == HINDSIGHT:
            return [min(self.skips, key=lambda skip: self.figure(place, skip, "after", SUCCESS))]
        stages = list(dict.fromkeys(self.stages))
        middle = stages[len(stages) // 2]
        inside = [skip for skip, stage in zip(self.skips, self.stages, strict=True) if stage == middle]
        return {RANDOM: list(self.skips), MIDDLE: inside}.get(arm, [arm])

    def twins(self, place: Place, arm: str) -> list[str]:
        """Keys of the same trainings with nothing silenced."""
        found = []
        for key in self.keys(place, arm):
            scores = self.blamed[place]["scores"][OWN]
            found.append(alone([self.skips[index] for index in best(scores, 2)] if key == TWO else [key], self))
        return found

    def figure(self, place: Place, key: str, when: str, what: str) -> float:
        """A share: `when` before, after or later."""
        return float(self.outcomes[(*place, key)]["attacked"][when][what][0])

    def value(self, place: Place, arm: str, when: str, what: str) -> float:
        """That of an arm; NaN where it has none."""
        keys = self.keys(place, arm)
        return float(np.mean([self.figure(place, key, when, what) for key in keys])) if keys else float("nan")

    def per_seed(self, arm: str, when: str, what: str, attack: str | None = None) -> Float[np.ndarray, " seeds"]:
        """Per seed, the mean over the attacks in which the arm does something, or of one attack; NaN for none."""
        return self.means(lambda place: self.value(place, arm, when, what), attack)

    def means(self, of: Callable[[Place], float], attack: str | None = None) -> Float[np.ndarray, " seeds"]:
        """Per seed, the mean over victims of what is a number there: what a seed does to all is counted once."""
        found = []
        for seed in sorted({seed for _, seed in self.judged}):
            values = [of(place) for place in self.judged if place[1] == seed and attack in (None, place[0])]
            known = [value for value in values if np.isfinite(value)]
            found.append(float(np.mean(known)) if known else float("nan"))
        return np.array(found)


def alone(skips: Sequence[str], one: Results) -> str:
    """Key of the tuning of the stages of these skips without silencing any."""
    stages = [one.stages[one.skips.index(skip)] for skip in skips]
    return f"{' and '.join(dict.fromkeys(stages))} alone"


def of_digits(seeds: int = 5) -> Cleansing:
    """The bundled digits."""
    return Cleansing(_without_consistent(digits(seeds)), Recipe(40, 0.05, 50))


def of_real(seeds: int = 2) -> tuple[Cleansing, ...]:
    """MNIST and CIFAR-10, where they are there: a trigger in one place and one all over the image.

    Fewer images to tune on than where screens are fitted: every skip of every victim is tried, twice tuned.
    """
    made = []
    for watched in map(_without_consistent, real()):
        attacks = {name: watched.attacks[name] for name in ("patch", "blend")}
        task = replace(watched.task, sizes={**watched.task.sizes, "reference": 500, "calibration": 250})
        made.append(Cleansing(Watched(task, attacks, seeds), Recipe(5, 0.02, 50)))
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
    keys, asked = [], []
    for place in places:
        for key, arm in _arms(skips, stages, blamed[place]["scores"], cleansing.recipe).items():
            keys.append((*place, key))
            asked.append({**shared[place], **arm})
    outcomes = dict(zip(keys, lab.ask("suppressed", asked), strict=True))
    silenced = {"factor": 0.0, "tune": "stage", "recipe": asdict(cleansing.recipe)}
    each = [(seed, skip) for seed in seeds for skip in skips]
    asked = [
        {"task": task, "seed": seed, "file": clean[seed]["file"], "skips": [skip], **silenced} for seed, skip in each
    ]
    costs = dict(zip(each, lab.ask("cost", asked), strict=True))
    return Results(cleansing, skips, stages, success, blamed, outcomes, costs)


def _arms(
    skips: Sequence[str], stages: Sequence[str], scores: Mapping[str, Any], recipe: Recipe
) -> dict[str, dict[str, Any]]:
    """Every outcome that is asked for of one victim, by key."""
    shared = {"tune": "stage", "recipe": asdict(recipe)}
    arms: dict[str, dict[str, Any]] = {skip: {"skips": [skip], "factor": 0.0, **shared} for skip in skips}
    first = dict(zip(reversed(stages), reversed(skips), strict=True))
    arms |= {f"{stage} alone": {"skips": [skip], "factor": 1.0, **shared} for stage, skip in first.items()}
    arms[WHOLE] = {"skips": [skips[0]], "factor": 1.0, **shared, "tune": "all"}
    if scores[OWN] is not None:
        pair = best(scores[OWN], 2)
        arms[TWO] = {"skips": [skips[index] for index in pair], "factor": 0.0, **shared}
        both = list(dict.fromkeys(stages[index] for index in pair))
        if len(both) > 1:
            twin = {"skips": [first[stage] for stage in both], "factor": 1.0, **shared}
            arms[f"{' and '.join(both)} alone"] = twin
    if scores[ORACLE] is not None:
        released = {"tune": "stage", "recipe": asdict(RELEASED), "oracle": True}
        arms[AS_RELEASED] = {"skips": [skips[best(scores[ORACLE])[0]]], "factor": 0.0, **released}
    return arms


def scale_of(name: str) -> Scale:
    """The scale of that name. Raises UnknownName."""
    scales = {"smoke": (of_digits(2),), "small": (of_digits(), *of_real()), "full": (of_digits(20), *of_real(5))}
    if name not in scales:
        raise UnknownName("scale", name, scales)
    return Scale(scales[name])
