"""Layers chosen from the first tenth of a training: at what cost, as stable as the whole procedure, and as good?"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from keylayers.papers.ila.plan import WAYS, EarlyChoicePlan, bundled_task, real_tasks
from keylayers.scores import LayerScores
from keylayers.studies.arms import Budget
from keylayers.studies.desk import Desk
from keylayers.studies.rankings import candidates, rank_layers
from keylayers.studies.retraining import (
    ALL,
    RANDOM,
    Sets,
    blow_ups,
    random_like,
    retrained,
    same_for_all_seeds,
    top_layers_per_seed,
)
from keylayers.studies.text_task import Task

WHOLE, EARLY, SHORT = "whole procedure", "early choice", "short stage 1"
"""All of stage 1; its beginning, cut off; a training of that length whose rate comes to rest."""


@dataclass(frozen=True)
class EarlyChoiceResults:
    """Ways to the same choice, the whole procedure and two that cost a tenth, by seed."""

    task: Task
    scores: Mapping[str, tuple[LayerScores, ...]]
    """WHOLE, EARLY and SHORT -> rankings."""
    seconds: Mapping[str, tuple[float, ...]]
    """Of choosing, stage 1 included."""
    full_seconds: tuple[float, ...]
    """Of training all layers."""
    losses: Mapping[str, tuple[float, ...]]
    """Arm -> test loss after training its 30 %, or all."""
    before: float
    blew_up: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Arm -> for each seed why its training is taken to have blown up; empty text where it did not."""


def measure_early_choice(desk: Desk, asked: EarlyChoicePlan) -> list[EarlyChoiceResults]:
    """The comparison for every task."""
    tasks = [*map(bundled_task, asked.tasks), *real_tasks()[: asked.real]]
    return [_chosen(desk, replace(task, training=replace(task.training, steps=asked.steps)), asked) for task in tasks]


def _chosen(desk: Desk, task: Task, asked: EarlyChoicePlan) -> EarlyChoiceResults:
    task = replace(task, name=f"{task.name}-{asked.steps}")
    early = replace(WAYS["midpoint"], share=asked.share, records=asked.records)
    ways = {WHOLE: WAYS["midpoint"], EARLY: early, SHORT: replace(early, short=True)}
    rate = asked.rates.offered[0]
    found = rank_layers(desk, task, ways, range(asked.seeds), rate)
    names, budget = candidates(desk, task), Budget(0.3)
    sets: dict[str, Sets] = {ALL: same_for_all_seeds(names)}
    for way, scores in found.scores.items():
        sets[way] = top_layers_per_seed(scores, budget)
    sets[RANDOM] = random_like(found.scores[WHOLE], budget, draw=4)
    trained, _ = retrained(desk, task, sets, asked.seeds, asked.rates)
    losses = {arm: tuple(one["test"] for one in each) for arm, each in trained.items()}
    full = tuple(one["seconds"] for one in trained[ALL])
    return EarlyChoiceResults(
        task, found.scores, found.seconds, full, losses, desk.ask(task, "before", [{}])[0]["test"], blow_ups(trained)
    )
