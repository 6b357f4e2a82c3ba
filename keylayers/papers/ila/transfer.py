"""Rankings of one model brought to another: do they choose better layers there than chance, depth or kind alone?"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from keylayers.papers.ila.plan import WAYS, TransferPlan, bundled_task
from keylayers.scores import LayerScores
from keylayers.scores.groups import averaged
from keylayers.scores.transfer import transferred
from keylayers.studies.arms import Budget
from keylayers.studies.desk import Desk
from keylayers.studies.rankings import full_rate, rank_layers
from keylayers.studies.retraining import (
    RANDOM,
    LearningRateGrid,
    Sets,
    blow_ups,
    random_like,
    retrained,
    top_layers_per_seed,
)
from keylayers.studies.text_task import Task

OWN = "own ranking"


@dataclass(frozen=True)
class TransferResults:
    """What training the layers chosen by carried rankings gave, by arm and seed."""

    task: Task
    before: float
    losses: Mapping[str, tuple[float, ...]]
    rates: Mapping[str, float]
    sources: tuple[str, ...]
    blew_up: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Arm -> for each seed why its training is taken to have blown up; empty text where it did not."""


def measure_transfer(desk: Desk, asked: TransferPlan) -> TransferResults:
    """Every source's ranking, its depth and its kinds alone, on the task's own model."""
    task, budget, seeds = bundled_task(asked.task), Budget(0.3), range(asked.seeds)
    own = _ranked(desk, task, asked)
    sets: dict[str, Sets] = {OWN: top_layers_per_seed(own, budget), RANDOM: random_like(own, budget, draw=6)}
    for source in asked.sources:
        scores = _ranked(desk, bundled_task(asked.task, model=source), asked)
        brought = [transferred(one, own[0].layers) for one in scores]
        sets[source] = top_layers_per_seed(brought, budget)
        sets[f"{source}, depth only"] = top_layers_per_seed([_depth(one) for one in brought], budget)
        sets[f"{source}, kind only"] = top_layers_per_seed([_kind(one) for one in brought], budget)
    found, rates = retrained(desk, task, sets, len(seeds), asked.rates)
    losses = {name: tuple(one["test"] for one in each) for name, each in found.items()}
    return TransferResults(
        task, desk.ask(task, "before", [{}])[0]["test"], losses, rates, asked.sources, blow_ups(found)
    )


def _ranked(desk: Desk, task: Task, asked: TransferPlan) -> tuple[LayerScores, ...]:
    """Rankings of a task at the rate its own stage 1 likes."""
    rate = full_rate(desk, task, LearningRateGrid(), asked.seeds)
    return rank_layers(desk, task, {asked.way: WAYS[asked.way]}, range(asked.seeds), rate).scores[asked.way]


def _depth(scores: LayerScores) -> LayerScores:
    return averaged(scores, [str(layer.block) for layer in scores.layers])


def _kind(scores: LayerScores) -> LayerScores:
    return averaged(scores, [layer.kind for layer in scores.layers])
