"""ILA's fair trial: the mask's optimiser, start, length and records, beside what a mask should agree with and beat."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from keylayers.errors import UnknownName
from keylayers.papers.ila.tasks import WAYS, bundled_task, real_tasks
from keylayers.runs import RunFolder
from keylayers.scores import LayerScores
from keylayers.studies.arms import Budget
from keylayers.studies.desk import Desk
from keylayers.studies.rankings import RankingMethod, mask, rank_layers
from keylayers.studies.retraining import (
    ALL,
    RANDOM,
    SAME_KINDS,
    LearningRateGrid,
    Sets,
    kept,
    random_like,
    retrained,
    same_for_all_seeds,
    top_layers_per_seed,
)
from keylayers.studies.runner import workers
from keylayers.studies.text_task import Task

USUAL = "Adam 0.01 x 100 from 4"
"""What `learned_mask` did by default when it was first judged; every other mask is set beside it."""

STEEPEST = "SGD 3 x 100 from 0"

CONVERGED = "SGD 100 from 4, to rest"
"""At rest: no gate moved by 0.005 over 25 steps; 300 steps at most. At a rate of 3, all gates still stand at 4's."""


MASKS = {
    USUAL: mask("adam", 0.01, 100, 4.0),
    "Adam 0.01 x 100 from 0": mask("adam", 0.01, 100, 0.0),
    STEEPEST: mask("sgd", 3.0, 100, 0.0),
    CONVERGED: mask("sgd", 100.0, 300, 4.0, rest=0.005),
    "Adam 0.05 x 400 from 4": mask("adam", 0.05, 400, 4.0),
    f"{USUAL}, training records": mask("adam", 0.01, 100, 4.0, records="training"),
    f"{STEEPEST}, training records": mask("sgd", 3.0, 100, 0.0, records="training"),
}
"""Every mask on trial."""

REFERENCES = ("midpoint", "leave one out", "norm")
"""What the masks are compared with: ways of scoring of the whole study."""

TRAINED = (USUAL, STEEPEST, "Adam 0.05 x 400 from 4")
"""Masks whose layers are also trained from the start, each beside random layers of its own kinds."""


@dataclass(frozen=True)
class Trial:
    """How much of the trial is run."""

    tasks: tuple[Task, ...]
    seeds: int = 5
    """Each is a procedure of its own: stage 1, mask, random sets, retraining."""
    budget: Budget = field(default_factory=lambda: Budget(0.3))
    stage_one: float = 1e-2
    """Learning rate of every stage 1: what training all layers chose on all three tasks of the small scale."""
    rates: LearningRateGrid = field(default_factory=lambda: LearningRateGrid((1e-2, 3e-2)))
    """Offered to every choice of layers on bundled models."""
    real_rates: LearningRateGrid = field(default_factory=lambda: LearningRateGrid((1e-2,)))
    """On real data: what all arms of the small scale chose there."""
    masks: Mapping[str, RankingMethod] = field(default_factory=lambda: MASKS)
    trained: tuple[str, ...] = TRAINED
    draws: int = 2
    """Random sets per seed."""


@dataclass(frozen=True)
class Tried:
    """All that was measured on one task."""

    task: Task
    before: Mapping[str, float]
    """Losses of the untuned model."""
    scores: Mapping[str, tuple[LayerScores, ...]]
    """Mask or reference -> rankings, one per seed."""
    seconds: Mapping[str, tuple[float, ...]]
    """Of each seed's choice of layers, its stage 1 included."""
    whole: tuple[float, ...]
    """Seconds of each seed's stage 1."""
    kept: Mapping[str, tuple[Mapping[str, float], ...]]
    """Arm -> losses with only its layers' changes, per seed; `all` is the fully tuned model."""
    retrained: Mapping[str, tuple[Mapping[str, float], ...]] = field(default_factory=dict)
    """Arm -> losses after training only its layers from the start, per seed, at its own learning rate."""
    rates: Mapping[str, float] = field(default_factory=dict)


def trial_of(name: str) -> Trial:
    """The trial of that scale: `masks`. Raises UnknownName."""
    if name != "masks":
        raise UnknownName("scale", name, ("masks",))
    tasks = (bundled_task("pirate"), *real_tasks()[:1], bundled_task("formal"))
    return Trial(tuple(replace(task, control=None) for task in tasks))


def reproduce(trial: Trial, run: RunFolder, processes: int = 2) -> Iterator[tuple[Tried, ...]]:
    """What is known after every part: first the masks of every task, then what training their layers gives."""
    with workers(processes) as pool:
        yield from tried(Desk(run, pool), trial)


def tried(desk: Desk, trial: Trial) -> Iterator[tuple[Tried, ...]]:
    """The same, at that desk."""
    found: list[Tried] = []
    for task in trial.tasks:
        found.append(_scored(desk, task, trial))
        yield tuple(found)
    for at, one in enumerate(found):
        found[at] = _trained(desk, one, trial)
        yield tuple(found)


def kinds_of(name: str) -> str:
    """The arm of random layers of the kinds that a ranking chooses."""
    return f"random, kinds of {name}"


def _scored(desk: Desk, task: Task, trial: Trial) -> Tried:
    ways = {**{name: WAYS[name] for name in REFERENCES}, **trial.masks}
    found = rank_layers(desk, task, ways, range(trial.seeds), trial.stage_one)
    sets = {name: top_layers_per_seed(scores, trial.budget) for name, scores in found.scores.items()}
    sets |= {kinds_of(name): _drawn(found.scores[name], trial, SAME_KINDS) for name in ("midpoint", *trial.masks)}
    sets[RANDOM] = _drawn(found.scores["midpoint"], trial, RANDOM)
    sets[ALL] = same_for_all_seeds([layer.name for layer in found.scores["midpoint"][0].layers])
    on = {part: kept(desk, task, sets, found.adapters, on=part) for part in ("calibration", "test")}
    left = {name: tuple({part: on[part][name][seed] for part in on} for seed in range(trial.seeds)) for name in sets}
    before = desk.ask(task, "before", [{}])[0]
    return Tried(task, before, found.scores, found.seconds, found.whole, left)


def _trained(desk: Desk, found: Tried, trial: Trial) -> Tried:
    sets: dict[str, Sets] = {"midpoint": top_layers_per_seed(found.scores["midpoint"], trial.budget)}
    for name in trial.trained:
        sets[name] = top_layers_per_seed(found.scores[name], trial.budget)
        sets[kinds_of(name)] = random_like(found.scores[name], trial.budget, draw=1, like=SAME_KINDS)
    sets[RANDOM] = _drawn(found.scores["midpoint"], trial, RANDOM)
    offered = trial.rates if found.task.inputs.model.startswith("bundled:") else trial.real_rates
    results, rates = retrained(desk, found.task, sets, trial.seeds, offered)
    return replace(found, retrained={**results, ALL: found.kept[ALL]}, rates={**rates, ALL: trial.stage_one})


def _drawn(scores: tuple[LayerScores, ...], trial: Trial, like: str) -> Sets:
    each = [random_like(scores, trial.budget, draw=draw, like=like) for draw in range(1, trial.draws + 1)]
    return lambda seed: [names for sets in each for names in sets(seed)]
