"""Layers for reasoning: chains of sums, where what counts is the share of answers that are right."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from keylayers.measures.blow_ups import noted, with_rate
from keylayers.papers.ila.tasks import WAYS, bundled_task
from keylayers.scores import select
from keylayers.studies.arms import Budget
from keylayers.studies.desk import Desk
from keylayers.studies.pages import Table, difference, plus_minus
from keylayers.studies.rankings import candidates, full_rate, rank_layers
from keylayers.studies.retraining import (
    ALL,
    RANDOM,
    LearningRateGrid,
    Sets,
    blow_ups,
    random_like,
    retrained,
    same_for_all_seeds,
    top_layers_per_seed,
)
from keylayers.studies.text_task import Task


@dataclass(frozen=True)
class ReasoningPlan:
    """Chains of sums: an answer is right or wrong."""

    model: str = "bundled:llama-shallow"
    """The base that has most left to learn of them."""
    data: str = "long_chains"
    seeds: int = 5
    ways: tuple[str, ...] = ("ILA (s0 = 4)", "midpoint", "leave one out")
    rates: LearningRateGrid = field(default_factory=lambda: LearningRateGrid((3e-3, 1e-2)))


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


def reasoning_table(found: ReasoningResults) -> Table:
    """Loss and right answers of every arm."""
    order = sorted(found.losses, key=lambda arm: -float(np.mean(found.exact[arm])))
    rows = [
        (
            arm, with_rate(found.rates[arm], found.blew_up.get(arm, ())), plus_minus(found.exact[arm]),
            plus_minus(found.losses[arm]),
            "" if arm == RANDOM else difference(found.exact[arm], found.exact[RANDOM]),
        )
        for arm in order
    ]  # fmt: skip
    notes = (
        f"Before tuning: {found.before['exact']:.3f} right, {found.before['test']:.3f} nats. Right: the chain and its "
        "result written exactly by greedy decoding. 30 % of LoRA's parameters; 95 %, paired by seed.",
        *noted(found.blew_up),
    )
    columns = ("layers chosen by", "lr", "right answers", "loss", "right answers minus random, same size")
    return Table(f"Reasoning: {found.task.name}, {found.task.inputs.model}", columns, tuple(rows), notes)
