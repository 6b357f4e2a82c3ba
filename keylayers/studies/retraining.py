"""Arms judged: trained from the same start at the rate that serves each best, or only their changes kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from keylayers.measures.blow_ups import best_rate, blown_up
from keylayers.runs import note
from keylayers.scores import LayerScores
from keylayers.studies.arms import Budget, controls, select_within_budget
from keylayers.studies.desk import Desk, averaged
from keylayers.studies.text_task import Task

BLEW_UP = "blew_up"
"""Key of a training's result: why it is taken to have blown up; empty if it did not."""

ALL, RANDOM, SAME_KINDS = "all", "random, same size", "random, same kinds"
"""The arms of all layers, and of random sets: of the size of those that a ranking chooses, or with as many layers of
each kind."""

Sets = Callable[[int], Sequence[Sequence[str]]]
"""Seed -> the sets of layers trained under it; what they give is averaged."""

Trained = dict[tuple[str, int, float], dict[str, Any]]
"""(arm, seed, learning rate) -> what its training gave."""


def same_for_all_seeds(names: Sequence[str]) -> Sets:
    """The same set with every seed."""
    return lambda seed: [names]


def top_layers_per_seed(scores: Sequence[LayerScores], budget: Budget, by: str = "score") -> Sets:
    """What each seed's ranking spends the budget on."""
    return lambda seed: [select_within_budget(scores[seed], budget, by).names]


def random_like(scores: Sequence[LayerScores], budget: Budget, *, draw: int, like: str = RANDOM) -> Sets:
    """A random set of the size, or of the kinds, of each seed's best; another `draw` gives other sets."""
    return lambda seed: [controls(scores[seed], budget, draws=1, seed=1000 * draw + seed)[like].choice(0).names]


@dataclass(frozen=True)
class LearningRateGrid:
    """The learning rates offered to every arm; each is tried with every seed, which is what choosing costs."""

    offered: tuple[float, ...] = (3e-3, 1e-2, 3e-2)


def best_rates(
    desk: Desk, task: Task, sets: Mapping[str, Sets], rates: LearningRateGrid, seeds: int, **options: Any
) -> dict[str, float]:
    """The learning rate that served each arm best, as `retrained` chooses it; nothing trains where one is offered."""
    if len(rates.offered) == 1:
        return dict.fromkeys(sets, rates.offered[0])
    return retrained(desk, task, sets, seeds, rates, **options)[1]


def retrained(
    desk: Desk, task: Task, sets: Mapping[str, Sets], seeds: int, rates: LearningRateGrid, **options: Any
) -> tuple[dict[str, tuple[dict[str, Any], ...]], dict[str, float]]:
    """What training each arm's layers gave, per seed, and the learning rate each arm chose.

    Every arm trains with every seed at every rate offered (seeds x rates trainings), and takes the rate of lowest mean
    loss on calibration records among those at which the fewest trainings blew up. Results hold losses on calibration,
    test and control records in nats per token, what trained, seconds, and `blew_up`: why this training is taken to have
    blown up, empty if it did not. `options` go to every training.
    """
    places = [(name, seed, rate) for seed in range(seeds) for name in sets for rate in rates.offered]
    trained = _trained(desk, task, sets, places, options)
    before = desk.ask(task, "before", [{}])[0]["calibration"]
    results, chosen = {}, {}
    for name in sets:
        arm = {rate: [trained[name, seed, rate] for seed in range(seeds)] for rate in rates.offered}
        tried = {rate: [result["calibration"] for result in each] for rate, each in arm.items()}
        reasons = {
            rate: [result.get("diverged") or reason for result, reason in zip(arm[rate], each, strict=True)]
            for rate, each in blown_up(tried, before).items()
        }
        for rate, seed in product(rates.offered, range(seeds)):
            if reasons[rate][seed]:
                note(f"{task.name}: {name}, seed {seed}, rate {rate:g} blew up: {reasons[rate][seed]}")
        rate = chosen[name] = best_rate(tried, reasons)
        results[name] = tuple(
            {**result, BLEW_UP: reason} for result, reason in zip(arm[rate], reasons[rate], strict=True)
        )
    return results, chosen


def blow_ups(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[str, ...]]:
    """Arm -> for each seed why its training is taken to have blown up; empty text where it did not."""
    return {name: tuple(result.get(BLEW_UP, "") for result in each) for name, each in results.items()}


def kept(
    desk: Desk, task: Task, sets: Mapping[str, Sets], adapters: Sequence[str], *, on: str = "test"
) -> dict[str, tuple[float, ...]]:
    """Arm -> loss of each seed's tuned model with only the arm's changes, the mean over its draws; on test or
    calibration records."""
    seeds = range(len(adapters))
    places = [(name, seed, names) for name, chosen in sets.items() for seed in seeds for names in chosen(seed)]
    asked = [{"adapter": adapters[seed], "layers": list(names)} for _, seed, names in places]
    losses: dict[tuple[str, int], list[float]] = {}
    for (name, seed, _), one in zip(places, desk.ask(task, "keep", asked), strict=True):
        losses.setdefault((name, seed), []).append(one[on])
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
    draws: dict[tuple[str, int, float], list[dict[str, Any]]] = {place: [] for place in places}
    for (place, _), result in zip(drawn, desk.ask(task, "retrain", asked), strict=True):
        draws[place].append(result)
    return {place: _of_draws(each) for place, each in draws.items()}


def _of_draws(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Their mean; one that diverged, and so gained nothing, stays known."""
    diverged = [result["diverged"] for result in results if "diverged" in result]
    return {**averaged(results), **({"diverged": diverged[0]} if diverged else {})}
