"""Arms judged: trained from the same start at the rate that serves each best, or only their changes kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from keylayers.recipes.bench import Task
from keylayers.recipes.desk import Desk, averaged
from keylayers.runs import note
from keylayers.scores import LayerScores
from keylayers.studies.arms import Budget, chosen_by, controls

ALL, RANDOM, SAME_KINDS = "all", "random, same size", "random, same kinds"
"""The arms of all layers, and of random sets: of the size of those that a ranking chooses, or with as many layers of
each kind."""

Sets = Callable[[int], Sequence[Sequence[str]]]
"""Seed -> the sets of layers trained under it; what they give is averaged."""

Trained = dict[tuple[str, int, float], dict[str, Any]]
"""(arm, seed, learning rate) -> what its training gave."""


def every(names: Sequence[str]) -> Sets:
    """The same set with every seed."""
    return lambda seed: [names]


def best_of(scores: Sequence[LayerScores], budget: Budget, by: str = "score") -> Sets:
    """What each seed's ranking spends the budget on."""
    return lambda seed: [chosen_by(scores[seed], budget, by).names]


def random_like(scores: Sequence[LayerScores], budget: Budget, *, draw: int, like: str = RANDOM) -> Sets:
    """A random set of the size, or of the kinds, of each seed's best; another `draw` gives other sets."""
    return lambda seed: [controls(scores[seed], budget, draws=1, seed=1000 * draw + seed)[like].choice(0).names]


@dataclass(frozen=True)
class Rates:
    """The learning rates offered to every arm, and how it chooses."""

    offered: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    seeds: int = 3
    """Seeds whose mean loss on calibration records decides; with one alone, arms chose rates at which others fail."""


def best_rates(
    desk: Desk, task: Task, sets: Mapping[str, Sets], rates: Rates, **options: Any
) -> tuple[dict[str, float], Trained]:
    """The learning rate that served each arm best, and the trainings that say so; `options` go to every training."""
    few = range(rates.seeds if len(rates.offered) > 1 else 0)
    places = [(name, seed, rate) for seed in few for name in sets for rate in rates.offered]
    found = _trained(desk, task, sets, places, options)

    def on_calibration(name: str, rate: float) -> float:
        return sum(found[name, seed, rate]["calibration"] for seed in few)

    return {name: min(rates.offered, key=partial(on_calibration, name)) for name in sets}, found


def retrained(
    desk: Desk, task: Task, sets: Mapping[str, Sets], seeds: int, rates: Rates, **options: Any
) -> tuple[dict[str, tuple[dict[str, Any], ...]], dict[str, float]]:
    """What training each arm's layers gave, per seed, and the learning rate each arm chose.

    Results hold losses on calibration, test and control records in nats per token, what trained, and seconds.
    """
    chosen, found = best_rates(desk, task, sets, rates, **options)
    missing = [(name, seed, chosen[name]) for seed in range(seeds) for name in sets]
    found |= _trained(desk, task, sets, [place for place in missing if place not in found], options)
    return {name: tuple(found[name, seed, chosen[name]] for seed in range(seeds)) for name in sets}, chosen


def kept(desk: Desk, task: Task, sets: Mapping[str, Sets], adapters: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Arm -> test loss of each seed's tuned model with only the arm's changes, the mean over its draws."""
    seeds = range(len(adapters))
    places = [(name, seed, names) for name, chosen in sets.items() for seed in seeds for names in chosen(seed)]
    asked = [{"adapter": adapters[seed], "layers": list(names)} for _, seed, names in places]
    losses: dict[tuple[str, int], list[float]] = {}
    for (name, seed, _), one in zip(places, desk.ask(task, "keep", asked), strict=True):
        losses.setdefault((name, seed), []).append(one["test"])
    return {name: tuple(fmean(losses[name, seed]) for seed in seeds) for name in sets}


def _trained(
    desk: Desk,
    task: Task,
    sets: Mapping[str, Sets],
    places: Sequence[tuple[str, int, float]],
    options: Mapping[str, Any],
) -> Trained:
    drawn = [(place, names) for place in places for names in sets[place[0]](place[1])]
    asked = [{"layers": list(names), "seed": seed, "lr": rate, **options} for (_, seed, rate), names in drawn]
    found: dict[tuple[str, int, float], list[dict[str, Any]]] = {place: [] for place in places}
    for (place, _), result in zip(drawn, desk.ask(task, "retrain", asked), strict=True):
        found[place].append(result)
        if "diverged" in result:
            note(f"{task.name}: {place[0]}, seed {place[1]}, rate {place[2]:g}: {result['diverged']}; it gains nothing")
    return {place: averaged(each) for place, each in found.items()}
