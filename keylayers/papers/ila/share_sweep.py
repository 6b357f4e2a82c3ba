"""How many layers: tuning the best, freezing the worst, from 5 % to all, in full precision and on 4-bit weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keylayers.measures.blow_ups import noted
from keylayers.measures.gain import recovered_gain
from keylayers.papers.ila.tasks import WAYS, bundled_task
from keylayers.scores import LayerScores
from keylayers.studies.arms import Budget
from keylayers.studies.desk import Desk
from keylayers.studies.pages import Claim, Table, claim, difference, plus_minus
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
class ShareSweepPlan:
    """How the share that is trained is varied."""

    task: str = "pirate"
    shares: tuple[float, ...] = (0.05, 0.1, 0.3, 0.5, 0.75)
    """Of LoRA's parameters on all layers."""
    ways: tuple[str, ...] = ("ILA (s0 = 4)", "midpoint")
    seeds: int = 3
    rates: LearningRateGrid = field(default_factory=lambda: LearningRateGrid((1e-2, 3e-2)))
    quantised: tuple[float, ...] = (0.3, 0.5, 0.75)
    """Shares that are also trained on weights that went through NF4, as QLoRA has them."""


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


def sweep_table(swept: ShareSweepResults) -> Table:
    """A row per share: what each arm recovers of the gain of training everything, and how it differs from random."""
    arms = list(dict.fromkeys(arm for arm, _ in swept.losses if arm != ALL))
    rows = []
    for share in sorted({share for _, share in swept.losses} - {1.0}):
        cells = [plus_minus(swept.gains(arm, share)) for arm in arms]
        against = [difference(swept.losses[arm, share], swept.losses[RANDOM, share]) for arm in arms if arm != RANDOM]
        frozen = [difference(swept.losses[arm, share], swept.losses[ALL, 1.0]) for arm in arms if arm != RANDOM]
        rows.append((f"{share:.0%}", *cells, *against, *frozen))
    others = [arm for arm in arms if arm != RANDOM]
    columns = (
        "trained", *(f"gain: {arm}" for arm in arms), *(f"{arm} minus random" for arm in others),
        *(f"{arm} minus all" for arm in others),
    )  # fmt: skip
    where = "on 4-bit weights (through NF4 and back: QLoRA's numbers, not its memory)" if swept.nf4 else "in fp32"
    notes = (
        f"Gain: share of the drop from {swept.before:.3f} to {np.mean(swept.losses[ALL, 1.0]):.3f} nats that training "
        "all layers brings; differences in nats, negative is better; 95 %, paired by seed; rates chosen per arm on "
        "calibration records. The paper freezes about 25 %, tunes 10 to 30 %, and with QLoRA 30 to 75 %.",
        *noted(swept.blew_up),
    )
    return Table(f"How many layers, {swept.task.name}, {where}", columns, tuple(rows), notes)


def sweep_claims(swept: ShareSweepResults) -> list[Claim]:
    """Freezing the worst quarter helps; ILA's best layers beat random ones at every share."""
    arms = list(dict.fromkeys(arm for arm, _ in swept.losses if arm not in (ALL, RANDOM)))
    name = swept.task.name + (", 4-bit" if swept.nf4 else "")
    found = []
    for arm in arms:
        source = "ILA" if arm.startswith("ILA") else "ours"
        for share in sorted({share for one, share in swept.losses if one == arm}):
            best = swept.losses[arm, share]
            if share == 0.75:
                found.append(
                    claim(f"{name}: freezing the worst 25 % by {arm} helps", source, swept.losses[ALL, 1.0], best)
                )
            text = f"{name}: {share:.0%} by {arm} beats random, same size"
            found.append(claim(text, source, swept.losses[RANDOM, share], best))
    return found
