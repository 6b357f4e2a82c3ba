"""ILA (Shi et al., COLM 2025) and its rivals put to the test: are the layers they choose worth training?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from keylayers.papers.ila.early_choice import EarlyChoiceResults, measure_early_choice
from keylayers.papers.ila.plan import Scale
from keylayers.papers.ila.reasoning import ReasoningResults, measure_reasoning
from keylayers.papers.ila.share_sweep import ShareSweepResults, measure_share_sweeps
from keylayers.papers.ila.stability import Overlap, measure_overlaps
from keylayers.papers.ila.tasks import DRAWS, REFERENCE, WAYS
from keylayers.papers.ila.transfer import TransferResults, measure_transfer
from keylayers.runs import RunFolder
from keylayers.scores import LayerScores, Selection
from keylayers.studies.arms import Arm, controls, select_within_budget
from keylayers.studies.desk import Desk
from keylayers.studies.rankings import full_rate, rank_layers
from keylayers.studies.retraining import ALL, RANDOM, kept, retrained
from keylayers.studies.runner import workers
from keylayers.studies.text_task import Task


@dataclass(frozen=True)
class TaskResults:
    """All that was measured on one task, by arm and seed."""

    task: Task
    before: Mapping[str, float]
    """Losses of the untuned model."""
    scores: Mapping[str, tuple[LayerScores, ...]]
    """Way -> rankings, one per seed."""
    scoring: Mapping[str, tuple[float, ...]]
    """Way -> seconds of each seed's choice of layers, its stage 1 included."""
    full_seconds: tuple[float, ...]
    """Of each seed's training of all layers, at the first learning rate."""
    kept: Mapping[str, tuple[float, ...]]
    """Arm -> test loss with only its layers' changes, per seed."""
    arms: Mapping[str, Arm]
    retrained: Mapping[str, tuple[Mapping[str, Any], ...]]
    """Arm -> what training its layers gave, per seed, at its own learning rate."""
    rates: Mapping[str, float]


@dataclass(frozen=True)
class Study:
    """All that was measured; what a scale leaves out is None or empty."""

    tasks: tuple[TaskResults, ...]
    overlaps: tuple[Overlap, ...] = ()
    swept: tuple[ShareSweepResults, ...] = ()
    chosen: tuple[EarlyChoiceResults, ...] = ()
    answered: ReasoningResults | None = None
    carried: TransferResults | None = None


def reproduce(scale: Scale, run: RunFolder, processes: int = 2) -> Iterator[Study]:
    """What is known after every part of a scale; what is finished is kept in the run folder, cell by cell."""
    study = Study(())
    with workers(processes) as pool:
        desk = Desk(run, pool)
        for task in scale.tasks:
            yield (study := replace(study, tasks=(*study.tasks, _task(task, scale, desk))))
        if scale.frugal:
            yield (study := replace(study, chosen=tuple(measure_early_choice(desk, scale.frugal))))
        if scale.sweep:
            yield (study := replace(study, swept=measure_share_sweeps(desk, scale.sweep)))
        if scale.reasoning:
            yield (study := replace(study, answered=measure_reasoning(desk, scale.reasoning)))
        if scale.transfer:
            yield (study := replace(study, carried=measure_transfer(desk, scale.transfer)))
        if scale.stability:
            yield replace(study, overlaps=tuple(measure_overlaps(desk, scale.stability)))


def _task(task: Task, scale: Scale, desk: Desk) -> TaskResults:
    seeds = range(scale.seeds)
    before = desk.ask(task, "before", [{}])[0]
    rate = full_rate(desk, task, scale.all_rates, scale.seeds)
    found = rank_layers(desk, task, {name: WAYS[name] for name in scale.ways}, seeds, rate)
    arms = arms_of(found.scores, scale)
    sets = {name: arm.names for name, arm in arms.items()}
    left = kept(desk, task, sets, found.adapters)
    trained, rates = retrained(desk, task, {ALL: sets[ALL]}, scale.seeds, scale.all_rates)
    full = tuple(one["seconds"] for one in trained[ALL])
    others, chosen = retrained(
        desk, task, {name: one for name, one in sets.items() if name != ALL}, scale.seeds, scale.rates
    )
    trained, rates = {**others, **trained}, {**chosen, **rates}
    return TaskResults(task, before, found.scores, found.seconds, full, left, arms, trained, rates)


def arms_of(scores: Mapping[str, tuple[LayerScores, ...]], scale: Scale) -> dict[str, Arm]:
    """Every arm at the scale's budget: one per way of scoring, random sets of its kinds where asked, the controls."""
    arms = {
        name: Arm(name, tuple(select_within_budget(one, scale.budget, WAYS[name].by) for one in each))
        for name, each in scores.items()
    }
    for name in scale.matched:
        draws = [
            controls(one, scale.budget, draws=1, seed=100 + seed, by=WAYS[name].by)
            for seed, one in enumerate(scores[name])
        ]
        label = f"random, kinds of {name}"
        arms[label] = Arm(label, tuple(each["random, same kinds"].choice(0) for each in draws))
    reference = [controls(one, scale.budget, draws=1, seed=200 + seed) for seed, one in enumerate(scores[REFERENCE])]
    for name in ("reversed", "depth only", "kind only", "last", "first"):
        arms[name] = Arm(name, tuple(each[name].choice(0) for each in reference))
    drawn = [
        controls(one, scale.budget, draws=1, seed=200 + seed + 1000 * draw)[RANDOM].choice(0)
        for seed, one in enumerate(scores[REFERENCE])
        for draw in range(DRAWS)
    ]
    arms[RANDOM] = Arm(RANDOM, tuple(drawn), DRAWS)
    layers = scores[REFERENCE][0].layers
    arms[ALL] = Arm(ALL, (Selection.of(layers, names=[layer.name for layer in layers], allow_total=True),))
    return arms
