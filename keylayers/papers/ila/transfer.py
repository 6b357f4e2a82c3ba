"""Rankings of one model brought to another: do they choose better layers there than chance, depth or kind alone?"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from keylayers.measures.blow_ups import noted, with_rate
from keylayers.papers.ila.tasks import WAYS, bundled_task
from keylayers.scores import LayerScores
from keylayers.scores.groups import averaged
from keylayers.scores.transfer import transferred
from keylayers.studies.arms import Budget
from keylayers.studies.desk import Desk
from keylayers.studies.pages import Claim, Table, claim, difference, plus_minus
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
class TransferPlan:
    """Rankings of other models, brought over to train this one."""

    task: str = "pirate"
    sources: tuple[str, ...] = ("bundled:llama-again", "bundled:llama-shallow", "bundled:llama-narrow")
    way: str = "midpoint"
    seeds: int = 5
    rates: LearningRateGrid = field(default_factory=lambda: LearningRateGrid((1e-2, 3e-2)))


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


def transfer_table(found: TransferResults) -> Table:
    """Own and carried rankings, their depth and kinds alone, and random sets."""
    rows = [
        (
            arm,
            with_rate(found.rates[arm], found.blew_up.get(arm, ())),
            plus_minus(losses),
            "" if arm == RANDOM else difference(losses, found.losses[RANDOM]),
        )
        for arm, losses in sorted(found.losses.items(), key=lambda pair: float(np.mean(pair[1])))
    ]
    columns = ("ranking of", "lr", "loss, retrained", "minus random, same size")
    notes = (
        f"Before tuning {found.before:.3f} nats; 30 % of LoRA's parameters; 95 %, paired by seed.",
        *noted(found.blew_up),
    )
    return Table(f"Rankings carried over to {found.task.inputs.model}, {found.task.name}", columns, tuple(rows), notes)


def transfer_claims(found: TransferResults) -> list[Claim]:
    """A carried ranking beats chance, its depth alone, its kinds alone; and is worse than the model's own."""
    claims = []
    for source in found.sources:
        best = found.losses[source]
        rivals = {
            "random, same size": RANDOM,
            "its depth alone": f"{source}, depth only",
            "its kinds alone": f"{source}, kind only",
        }
        for words, rival in rivals.items():
            claims.append(claim(f"ranking of {source} beats {words}", "ILA: works, worse", found.losses[rival], best))
        claims.append(claim(f"the own ranking beats that of {source}", "ILA", best, found.losses[OWN]))
    return claims
