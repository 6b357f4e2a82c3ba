"""The league: every way of scoring layers, one question, equal budgets. Which picks the layers worth training?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.league.entrants import BEST, ENTRANTS, KINDS, THIN, TURNS, League
from keylayers.measures.gain import recovered_gain
from keylayers.runs import RunFolder
from keylayers.scores import LayerScores, select
from keylayers.scores.spreading import ties_shuffled
from keylayers.studies.arms import Budget
from keylayers.studies.desk import Desk
from keylayers.studies.rankings import candidates, full_rate, rank_layers
from keylayers.studies.retraining import (
    ALL,
    RANDOM,
    SAME_KINDS,
    Sets,
    kept,
    random_like,
    retrained,
    same_for_all_seeds,
    top_layers_per_seed,
)
from keylayers.studies.runner import workers
from keylayers.studies.text_task import Task


@dataclass(frozen=True)
class LeagueResult:
    """One task at one budget: what every entrant and rival gave, per seed."""

    task: Task
    budget: float
    before: Mapping[str, float]
    """Losses of the untuned model, nats per token."""
    trained: Mapping[str, tuple[Mapping[str, Any], ...]]
    """Arm -> losses after training its layers, at its own learning rate."""
    kept: Mapping[str, tuple[float, ...]]
    """Arm -> test loss with only its layers' changes of the whole training; rivals that choose no set are absent."""
    rates: Mapping[str, float]
    chosen: Mapping[str, tuple[tuple[str, ...], ...]]
    """Arm -> the layers it chose with every seed."""
    parts: Mapping[str, str]
    """Layer -> the part of a block that it lies in, or its name outside of the blocks."""
    seconds: Mapping[str, tuple[float, ...]]
    """Entrant -> seconds of choosing, stage 1 included."""
    peaks: Mapping[str, int]
    """Entrant -> bytes that scoring added to what the process held."""
    whole: tuple[float, ...]
    """Seconds of one training of all layers, per seed."""
    offered: tuple[float, ...]
    """Learning rates that every arm chose from."""
    unable: Mapping[str, str] = field(default_factory=dict)
    """Entrant -> why it cannot score this model; it is in none of the above."""

    def gains(self, arm: str) -> Float[np.ndarray, " seeds"]:
        """Share of the gain of training all layers that an arm recovers, per seed."""
        losses, full = ([one["test"] for one in self.trained[name]] for name in (arm, ALL))
        return recovered_gain(self.before["test"], losses, full)


def play_league(league: League, run: RunFolder, processes: int = 2) -> Iterator[tuple[LeagueResult, ...]]:
    """What is known after every task and budget; what is finished is kept in the run folder, cell by cell."""
    played: list[LeagueResult] = []
    with workers(processes) as pool:
        for task in league.tasks:
            for found in games(Desk(run, pool), task, league):
                played.append(found)
                yield tuple(played)


def games(desk: Desk, task: Task, league: League) -> Iterator[LeagueResult]:
    """One task at every budget."""
    before, names = desk.ask(task, "before", [{}])[0], candidates(desk, task)
    rate = full_rate(desk, task, league.rates, league.seeds)
    (whole,) = desk.ask(task, "retrain", [{"layers": list(names), "seed": 0, "lr": rate}])
    if whole["calibration"] >= before["calibration"]:
        raise BadInput(
            f"training all layers of {task.inputs.model} on {task.name} does not lower the loss of calibration records "
            f"({before['calibration']:.3f} before, {whole['calibration']:.3f} after, nats per token), so no choice can "
            "recover anything: train longer (`steps`) or at another rate (`learning_rate`)."
        )
    ways = {name: ENTRANTS[name] for name in league.entrants}
    found = rank_layers(desk, task, ways, range(league.seeds), rate, optional=True)
    if not found.scores:
        raise BadInput(f"no entrant can score {task.inputs.model} on {task.name}: {'; '.join(found.unable.values())}")
    layers = next(iter(found.scores.values()))[0].layers
    for share in league.budgets:
        sets = _sets(found.scores, names, Budget(share), league)
        trained, rates = retrained(desk, task, sets, league.seeds, league.rates)
        for name, rival in _rivals(share, task, league, layers).items():
            more, chosen = retrained(desk, task, {name: rival.sets}, league.seeds, league.rates, **rival.options)
            trained |= more
            rates |= chosen
        left = kept(desk, task, sets, found.adapters) if found.adapters else {}
        chosen_sets = {name: tuple(tuple(one(seed)[0]) for seed in range(league.seeds)) for name, one in sets.items()}
        yield LeagueResult(
            task,
            share,
            before,
            trained,
            left,
            rates,
            chosen_sets,
            {layer.name: layer.kind.split(".")[0] for layer in layers},
            found.seconds,
            found.peaks,
            found.whole or tuple(one["seconds"] for one in trained[ALL]),
            league.rates.offered,
            found.unable,
        )


def _sets(
    scores: Mapping[str, Sequence[LayerScores]], names: Sequence[str], budget: Budget, league: League
) -> dict[str, Sets]:
    """Every arm that chooses a set."""
    found = {name: top_layers_per_seed(_untied(name, each), budget, ENTRANTS[name].by) for name, each in scores.items()}
    found[RANDOM] = _drawn(next(iter(scores.values())), budget, league.draws, RANDOM)
    if BEST in scores:
        found[KINDS] = _drawn(scores[BEST], budget, league.draws, SAME_KINDS)
    return {**found, ALL: same_for_all_seeds(names)}


def _drawn(scores: Sequence[LayerScores], budget: Budget, draws: int, like: str) -> Sets:
    each = [random_like(scores, budget, draw=draw + 1, like=like) for draw in range(draws)]
    return lambda seed: [names for one in each for names in one(seed)]


def _untied(name: str, scores: Sequence[LayerScores]) -> list[LayerScores]:
    """Layers of one block tie where blocks are scored: which of them come first is drawn, with every seed anew."""
    if ENTRANTS[name].granularity is None:
        return list(scores)
    return [ties_shuffled(one, seed) for seed, one in enumerate(scores)]


@dataclass(frozen=True)
class _Rival:
    sets: Sets
    options: dict[str, Any]
    """Of the training."""


def _rivals(share: float, task: Task, league: League, layers: Sequence[Layer]) -> dict[str, _Rival]:
    """Rivals that no score chooses for, which spend the same: random layers by turns, and a lower rank on as many
    layers, drawn at random, as it pays for."""
    policy = f"random:params={100 * share:g}%:of=lora:seed={{draw}}"
    rank = max(1, ceil(share * task.lora.rank - 1e-9))
    part = min(1.0, share * task.lora.rank / rank)

    def most(seed: int) -> list[tuple[str, ...]]:
        if part > 1 - 1e-9:
            return [tuple(layer.name for layer in layers)]
        return [select(layers, f"random:params={100 * part:.6g}%:of=lora:seed={seed}").names]

    return {
        TURNS: _Rival(
            same_for_all_seeds([layer.name for layer in layers]), {"turns": {"every": league.turn, "policy": policy}}
        ),
        THIN: _Rival(most, {"rank": rank}),
    }
