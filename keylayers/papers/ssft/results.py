"""What the cleansing study found: its arms, and their figures by victim and over seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.papers.ssft.cells import CLEAN, ORACLE, OWN, FinetuneSchedule, best, diverged, released
from keylayers.studies.backdoor_tasks import BackdoorTask

RANDOM, MIDDLE, HINDSIGHT = "any one skip, at random", "skips of the middle stage", "best in hindsight"
WHOLE, AS_RELEASED = "fine-tuning alone, everything", "as released (oracle)"
RELEASED_TWIN = "as released, nothing silenced"
RULES = (ORACLE, OWN, CLEAN)
TWO = "the two most blamed by an own trigger"
TWIN = "the same tuning, nothing silenced"
SUCCESS, CLEAN_SHARE = "attack_success_rate", "clean_accuracy"
NONE = float("nan")


@dataclass(frozen=True)
class Cleansing:
    """A task, its attacks, and how cleansed models are tuned."""

    watched: BackdoorTask
    recipe: FinetuneSchedule

    @property
    def images(self) -> int:
        """That a defender has."""
        return self.watched.task.sizes["reference"]

    @property
    def released(self) -> FinetuneSchedule:
        """That of the arm `as released`."""
        return released(self.images)


Place = tuple[str, int]
"""An attack and a seed: a victim."""


@dataclass(frozen=True)
class Results:
    """What one task gave, by attack and judged seed."""

    cleansing: Cleansing
    skips: tuple[str, ...]
    stages: tuple[str, ...]
    """Of each skip."""
    success: Mapping[str, tuple[float | None, ...]]
    """Attack -> attack success before any defence, every seed; None where the victim's own training diverged."""
    blamed: Mapping[Place, Mapping[str, Any]]
    """Scores of every skip by each rule; None by a rule that blames none."""
    outcomes: Mapping[tuple[str, int, str], Mapping[str, Any]]
    """(attack, seed, key) -> the judgement; keys are skips, `STAGE alone`, TWO, WHOLE, AS_RELEASED and
    its twin."""
    costs: Mapping[tuple[int, str], Mapping[str, Any]]
    """(seed, skip) -> accuracy of a model that nobody attacked, before and after the same was done to it."""

    @property
    def judged(self) -> list[Place]:
        """Attacks and seeds in which the attack works."""
        return list(self.blamed)

    def keys(self, place: Place, arm: str) -> list[str]:
        """Of the outcomes that an arm is the mean of; none where a rule blames no skip."""
        if arm in (*RULES, TWO, AS_RELEASED):
            scores = self.blamed[place]["scores"][{TWO: OWN, AS_RELEASED: ORACLE}.get(arm, arm)]
            if scores is None:
                return []
            chosen = best(scores, 2 if arm == TWO else 1)
            return [arm] if arm == AS_RELEASED or len(chosen) > 1 else [self.skips[chosen[0]]]
        if arm == HINDSIGHT:
            found = {skip: self.figure(place, skip, "after", SUCCESS) for skip in self.skips}
            known = [skip for skip, value in found.items() if np.isfinite(value)]
            return [min(known, key=lambda skip: found[skip])] if known else []
        stages = list(dict.fromkeys(self.stages))
        middle = stages[len(stages) // 2]
        inside = [skip for skip, stage in zip(self.skips, self.stages, strict=True) if stage == middle]
        return {RANDOM: list(self.skips), MIDDLE: inside}.get(arm, [arm])

    def twins(self, place: Place, arm: str) -> list[str]:
        """Keys of the same trainings with nothing silenced."""
        found = []
        if arm == AS_RELEASED:
            return [RELEASED_TWIN] if self.keys(place, arm) else []
        for key in () if arm == WHOLE else self.keys(place, arm):
            scores = self.blamed[place]["scores"][OWN]
            found.append(alone([self.skips[index] for index in best(scores, 2)] if key == TWO else [key], self))
        return found

    def figure(self, place: Place, key: str, when: str, what: str) -> float:
        """A share: `when` before, after or later; NaN where the training diverged."""
        found = self.outcomes[(*place, key)]
        return NONE if diverged(found) else float(found["attacked"][when][what][0])

    def value(self, place: Place, arm: str, when: str, what: str) -> float:
        """That of an arm, the mean over its trainings that came to an end; NaN where it has none."""
        return mean([self.figure(place, key, when, what) for key in self.keys(place, arm)])

    def twin(self, place: Place, arm: str) -> float:
        """Attack success after the same trainings with nothing silenced; NaN where the arm or they have none."""
        value = mean([self.figure(place, key, "after", SUCCESS) for key in self.twins(place, arm)])
        return value if self.known(place, arm) else NONE

    def known(self, place: Place, arm: str) -> bool:
        """Whether the arm does something there, and comes to an end."""
        return bool(np.isfinite(self.value(place, arm, "after", SUCCESS)))

    def diverged(self, place: Place, arm: str) -> int:
        """How many of its trainings did."""
        return sum(diverged(self.outcomes[(*place, key)]) for key in self.keys(place, arm))

    def cost(self, place: Place, arm: str) -> float:
        """What it changes the accuracy of a model that nobody attacked by; NaN where that was not measured."""
        found = [self.costs.get((place[1], key), {}) for key in self.keys(place, arm)]
        return mean([one["after"] - one["before"] for one in found if "after" in one])

    def per_seed(self, arm: str, when: str, what: str, attack: str | None = None) -> Float[np.ndarray, " seeds"]:
        """Per seed, the mean over the attacks in which the arm does something, or of one attack; NaN for none."""
        return self.means(lambda place: self.value(place, arm, when, what), attack)

    def means(self, of: Callable[[Place], float], attack: str | None = None) -> Float[np.ndarray, " seeds"]:
        """Per seed, the mean over victims of what is a number there: what a seed does to all is counted once."""
        found = []
        for seed in sorted({seed for _, seed in self.judged}):
            found.append(mean([of(place) for place in self.judged if place[1] == seed and attack in (None, place[0])]))
        return np.array(found)


def mean(values: Sequence[float] | np.ndarray) -> float:
    """Of those that are numbers; NaN for none."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else NONE


def alone(skips: Sequence[str], one: Results) -> str:
    """Key of the tuning of the stages of these skips without silencing any."""
    stages = [one.stages[one.skips.index(skip)] for skip in skips]
    return f"{' and '.join(dict.fromkeys(stages))} alone"
