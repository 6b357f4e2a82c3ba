"""Layers chosen from the first tenth of a training: at what cost, as stable as the whole procedure, and as good?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from keylayers.measures.blow_ups import noted
from keylayers.papers.ila.tasks import WAYS, bundled_task, real_tasks
from keylayers.scores import LayerScores, agreement
from keylayers.studies.arms import Budget
from keylayers.studies.desk import Desk
from keylayers.studies.pages import Claim, Table, claim, difference, plus_minus
from keylayers.studies.rankings import candidates, rank_layers
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

WHOLE, EARLY, SHORT = "whole procedure", "early choice", "short stage 1"
"""All of stage 1; its beginning, cut off; a training of that length whose rate comes to rest."""


TOP = 0.3
"""Share of layers in the sets whose overlap decides whether an early choice is the same choice."""


@dataclass(frozen=True)
class EarlyChoicePlan:
    """A longer training, whose layers are chosen from its beginning."""

    tasks: tuple[str, ...] = ("pirate",)
    real: int = 1
    """How many of the real tasks beside them, where they are there."""
    steps: int = 240
    share: float = 0.1
    """Of stage 1 that the choice sees."""
    records: int = 32
    """Calibration records it looks at."""
    seeds: int = 5
    rates: LearningRateGrid = field(default_factory=lambda: LearningRateGrid((1e-2,)))


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


def frugal_table(chosen: Sequence[EarlyChoiceResults]) -> Table:
    """Cost, stability and worth of choosing early, beside the whole procedure."""
    rows = []
    for one in chosen:
        full = np.array(one.full_seconds)
        seeds = range(len(full))
        between = [agreement(one.scores[WHOLE][i], one.scores[WHOLE][j], TOP) for i in seeds for j in seeds if i < j]
        for name in one.scores:
            apart = [agreement(one.scores[name][i], one.scores[WHOLE][j], TOP) for i in seeds for j in seeds if i != j]
            pairs = between if name == WHOLE else apart
            loss = one.losses[name]
            rows.append(
                (
                    one.task.name, name, f"{np.mean(np.array(one.seconds[name]) / full):.3f}",
                    f"{np.mean([pair.spearman.value for pair in pairs]):.3f}",
                    f"{np.mean([pair.top.jaccard for pair in pairs]):.3f} ({pairs[0].top.expected:.3f})",
                    plus_minus(loss), difference(loss, one.losses[WHOLE]) if name != WHOLE else "",
                    difference(loss, one.losses[RANDOM]),
                )
            )  # fmt: skip
    columns = (
        "task", "layers chosen by", "cost / one full training", "Spearman with the whole procedure, other seeds",
        "Jaccard, top 30 % (chance)", "loss, retrained", "minus whole procedure", "minus random, same size",
    )  # fmt: skip
    blew_up = {f"{one.task.name}, {arm}": each for one in chosen for arm, each in one.blew_up.items()}
    notes = ("95 %, paired by seed; costs as ratios within one run.", *noted(blew_up))
    return Table("Choosing early", columns, tuple(rows), notes)


def frugal_claims(chosen: Sequence[EarlyChoiceResults]) -> list[Claim]:
    """The early choice is worse than the whole procedure's; it beats random."""
    found = []
    for one in chosen:
        name, losses = one.task.name, one.losses
        for way in (one for one in (EARLY, SHORT) if one in losses):
            found.append(claim(f"{name}: {WHOLE} beats {way}", "ours", losses[way], losses[WHOLE]))
            found.append(claim(f"{name}: {way} beats random, same size", "ours", losses[RANDOM], losses[way]))
    return found
