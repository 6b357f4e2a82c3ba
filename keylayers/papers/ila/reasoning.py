"""Layers for reasoning: chains of sums, where what counts is the share of answers that are right."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from keylayers.papers.ila.plan import WAYS, ReasoningPlan, bundled_task
from keylayers.scores import select
from keylayers.studies.arms import Budget
from keylayers.studies.desk import Desk
from keylayers.studies.rankings import candidates, full_rate, rank_layers
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


@dataclass(frozen=True)
class ReasoningResults:
    """What training each arm's 30 % gave, by seed."""

    task: Task
    before: Mapping[str, float]
    """Loss and share of right answers of the untuned model."""
    losses: Mapping[str, tuple[float, ...]]
    exact: Mapping[str, tuple[float, ...]]
    """Share of right answers, in [0, 1]."""
    rates: Mapping[str, float]
    blew_up: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Arm -> for each seed why its training is taken to have blown up; empty text where it did not."""


def measure_reasoning(desk: Desk, asked: ReasoningPlan) -> ReasoningResults:
    """Every arm trained on chains and asked test chains."""
    task = bundled_task(asked.data, model=asked.model)
    rate = full_rate(desk, task, asked.rates, asked.seeds, answers=True)
    scores = rank_layers(desk, task, {name: WAYS[name] for name in asked.ways}, range(asked.seeds), rate).scores
    budget, like = Budget(0.3), scores[asked.ways[0]]
    sets: dict[str, Sets] = {ALL: same_for_all_seeds(candidates(desk, task))}
    sets |= {name: top_layers_per_seed(scores[name], budget) for name in asked.ways}
    sets |= {
        RANDOM: random_like(like, budget, draw=5),
        "last": same_for_all_seeds(select(like[0].layers, budget.policy("last")).names),
    }
    found, rates = retrained(desk, task, sets, asked.seeds, asked.rates, answers=True)
    return ReasoningResults(
        task,
        desk.ask(task, "before", [{"answers": True}])[0],
        {name: tuple(one["test"] for one in each) for name, each in found.items()},
        {name: tuple(one["exact"] for one in each) for name, each in found.items()},
        rates,
        blow_ups(found),
    )
