"""The rankings of a task: stage 1 at the learning rate that serves it, then every way of scoring, per seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keylayers import criteria
from keylayers.scores import LayerScores
from keylayers.studies.desk import Desk
from keylayers.studies.retraining import ALL, LearningRateGrid, best_rates, same_for_all_seeds
from keylayers.studies.text_cells import scores_in
from keylayers.studies.text_task import Task


@dataclass(frozen=True)
class RankingMethod:
    """One way of scoring: a criterion, its settings, and how much of stage 1 it looks at."""

    criterion: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    share: float | None = 1.0
    """Of stage 1's steps; None: it needs no stage 1."""
    by: str = "score"
    """How the budget is spent: down the ranking, by score per parameter (`density`), or `kinds` first."""
    records: int | None = None
    """Calibration records it looks at; None: all."""
    seeded: bool = True
    """Whether each procedure gives a criterion that draws its own seed."""
    granularity: str | None = None
    """That it scores at, where it is not that of the candidates."""
    short: bool = False
    """Whether its share of stage 1 is a training with a schedule of its own, not the beginning of the whole one."""

    def at(self, seed: int) -> dict[str, Any]:
        """The criterion's settings in the procedure of that seed."""
        drawn = self.seeded and hasattr(criteria.get(self.criterion).settings(), "seed")
        return {**self.settings, **({"seed": seed} if drawn else {})}


def mask(optimiser: str, rate: float, steps: int, initial: float, **other: object) -> RankingMethod:
    """ILA's mask so learnt, whatever the criterion's defaults are."""
    settings = {"optimiser": optimiser, "learning_rate": rate, "steps": steps, "initial": initial, **other}
    return RankingMethod("learned_mask", settings)


@dataclass(frozen=True)
class Rankings:
    """What the ways of scoring say of a task's layers."""

    scores: Mapping[str, tuple[LayerScores, ...]]
    """Way -> rankings, one per seed."""
    seconds: Mapping[str, tuple[float, ...]]
    """Way -> seconds of each seed's choice of layers, its stage 1 included."""
    adapters: tuple[str, ...]
    """Of each seed's whole stage 1, below the run folder; empty where no way asked for it."""
    rate: float
    """Of stage 1."""
    peaks: Mapping[str, int]
    """Way -> most bytes that scoring added to what the process held, over seeds."""
    whole: tuple[float, ...] = ()
    """Seconds of each seed's whole stage 1; empty where no way asked for it."""
    unable: Mapping[str, str] = field(default_factory=dict)
    """Way -> why it cannot score this model on this data; it is in none of the above."""


def candidates(desk: Desk, task: Task) -> list[str]:
    """Names of the layers that can be chosen."""
    return desk.ask(task, "names", [{}])[0]["names"]


def full_rate(desk: Desk, task: Task, rates: LearningRateGrid, seeds: int, **options: Any) -> float:
    """The learning rate that serves a training of all layers best, on calibration records, over that many seeds."""
    return best_rates(desk, task, {ALL: same_for_all_seeds(candidates(desk, task))}, rates, seeds, **options)[ALL]


def rank_layers(
    desk: Desk,
    task: Task,
    ways: Mapping[str, RankingMethod],
    seeds: Sequence[int],
    rate: float,
    *,
    optional: bool = False,
) -> Rankings:
    """Every way's ranking for every seed; each seed is a procedure of its own: stage 1, then scores.

    `optional`: a way that cannot score this model is left out and says why; else it raises.
    """
    kinds = sorted({(way.share, way.short) for way in ways.values() if way.share is not None}, reverse=True)
    parts = [(seed, *kind) for kind in kinds for seed in seeds]
    asked: list[dict[str, Any]] = [
        {"seed": seed, "lr": rate, "share": share, **({"short": True} if short else {})} for seed, share, short in parts
    ]
    stages = dict(zip(parts, desk.ask(task, "stage_one", asked), strict=True))
    asked = [
        {
            "criterion": way.criterion,
            "settings": way.at(seed),
            "adapter": None if way.share is None else stages[seed, way.share, way.short]["adapter"],
            "records": way.records,
            **({} if way.granularity is None else {"granularity": way.granularity}),
            **({"optional": True} if optional else {}),
        }
        for way in ways.values()
        for seed in seeds
    ]
    found = iter(desk.ask(task, "score", asked))
    scores, seconds, peaks, unable = {}, {}, {}, {}
    for name, way in ways.items():
        each = [(seed, next(found)) for seed in seeds]
        if reasons := [one["cannot"] for _, one in each if "cannot" in one]:
            unable[name] = reasons[0]
            continue
        scores[name] = tuple(scores_in(desk.run.path, one) for _, one in each)
        before = {seed: 0.0 if way.share is None else stages[seed, way.share, way.short]["seconds"] for seed in seeds}
        seconds[name] = tuple(one["seconds"] + before[seed] for seed, one in each)
        peaks[name] = max(one.get("peak", 0) for _, one in each)
    whole = (1.0, False) in kinds
    adapters = tuple(stages[seed, 1.0, False]["adapter"] for seed in seeds) if whole else ()
    took = tuple(stages[seed, 1.0, False]["seconds"] for seed in seeds) if whole else ()
    return Rankings(scores, seconds, adapters, rate, peaks, took, unable)
