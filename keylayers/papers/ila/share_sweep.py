"""How many layers: tuning the best, freezing the worst, from 5 % to all, in full precision and on 4-bit weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keylayers.measures.gain import recovered_gain
from keylayers.papers.ila.plan import WAYS, ShareSweepPlan, bundled_task
from keylayers.scores import LayerScores
from keylayers.studies.arms import Budget
from keylayers.studies.desk import Desk
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
class ShareSweepResults:
    """What training a share of the layers gave, by arm, share and seed; the arm `all` has the share 1."""

    task: Task
    before: float
    """Test loss of the untuned model."""
    losses: Mapping[tuple[str, float], tuple[float, ...]]
    rates: Mapping[tuple[str, float], float]
    nf4: bool
    blew_up: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Arm -> for each seed why its training is taken to have blown up; empty text where it did not."""

    def gains(self, arm: str, share: float) -> np.ndarray:
        """Share of the gain of training all layers that is recovered, per seed."""
        return recovered_gain(self.before, self.losses[arm, share], self.losses[ALL, 1.0])


def measure_share_sweeps(desk: Desk, asked: ShareSweepPlan) -> tuple[ShareSweepResults, ShareSweepResults]:
    """The sweep in full precision, and the one on weights that went through NF4, at the rates of the first."""
    task = bundled_task(asked.task)
    rate = full_rate(desk, task, LearningRateGrid(), asked.seeds)
    scores = rank_layers(desk, task, {name: WAYS[name] for name in asked.ways}, range(asked.seeds), rate).scores
    exact = _swept(desk, task, asked, scores, asked.shares, asked.rates)
    return exact, _swept(desk, task, asked, scores, asked.quantised, asked.rates, nf4=True)


def _swept(
    desk: Desk,
    task: Task,
    asked: ShareSweepPlan,
    scores: Mapping[str, Sequence[LayerScores]],
    shares: Sequence[float],
    rates: LearningRateGrid,
    nf4: bool = False,
) -> ShareSweepResults:
    sets: dict[tuple[str, float], Sets] = {(ALL, 1.0): same_for_all_seeds(candidates(desk, task))}
    for share in shares:
        for way in asked.ways:
            sets[way, share] = top_layers_per_seed(scores[way], Budget(share))
        sets[RANDOM, share] = random_like(scores[asked.ways[0]], Budget(share), draw=3)
    named = {f"{arm}, {share:g}": chosen for (arm, share), chosen in sets.items()}
    options: dict[str, Any] = {"nf4": True} if nf4 else {}
    found, chosen = retrained(desk, task, named, asked.seeds, rates, **options)
    keys = dict(zip(sets, named, strict=True))
    losses = {key: tuple(one["test"] for one in found[name]) for key, name in keys.items()}
    before = desk.ask(task, "before", [{}])[0]["test"]
    return ShareSweepResults(
        task, before, losses, {key: chosen[name] for key, name in keys.items()}, nf4, blow_ups(found)
    )
