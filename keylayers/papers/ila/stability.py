"""Do ILA's rankings agree: between data sets, seeds, initial scores, moments of training, sizes of data, models?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from keylayers.layers.naming import named_layers
from keylayers.models.loading import load_shape
from keylayers.papers.ila.tasks import WAYS, bundled_task, real_tasks
from keylayers.scores import LayerScores
from keylayers.scores.transfer import transferred
from keylayers.studies.desk import Desk
from keylayers.studies.rankings import RankingMethod, rank_layers
from keylayers.studies.text_task import Task

Pair = tuple[int, int, LayerScores, LayerScores]
"""Two rankings and the seeds they come from: pairs that share one are not independent."""


@dataclass(frozen=True)
class StabilityPlan:
    """Whose rankings are compared with whose."""

    rate: float = 1e-2
    """Learning rate of every stage 1: what tuning all layers chose on the first style."""
    seeds: int = 3
    styles: tuple[str, ...] = ("pirate", "formal", "json")
    others: tuple[str, ...] = ("long_chains", "choices", "translation")
    """Reasoning, multiple choice, translation."""
    initial_scores: tuple[float, ...] = (0.0, 2.0, 4.0)
    milestones: tuple[float, ...] = (0.1, 0.25, 0.5)
    records: tuple[int, ...] = (64,)
    narrow: str = "pirate_facts"
    """The first style, in answers to one kind of request alone."""
    models: tuple[str, ...] = ("bundled:llama", "bundled:llama-again", "bundled:llama-shallow", "bundled:llama-narrow")
    ways: tuple[str, ...] = ("ILA (s0 = 4)", "midpoint", "norm")


@dataclass(frozen=True)
class Overlap:
    """One row of a question: rankings of one way of scoring, in pairs."""

    question: str
    of: str
    """What the two sides of every pair are."""
    way: str
    pairs: tuple[Pair, ...]
    paper: str = ""
    """What the paper reports for it."""


def measure_overlaps(desk: Desk, asked: StabilityPlan) -> list[Overlap]:
    """The rows of all questions, in the order of the paper."""
    questions = (_between_data, _between_seeds, _initial_scores, _milestones, _amount_of_data, _kind_of_data, _models)
    return [row for question in questions for row in question(desk, asked)]


def _ranked(desk: Desk, task: Task, asked: StabilityPlan, share: float = 1.0) -> Mapping[str, tuple[LayerScores, ...]]:
    ways = {name: replace(WAYS[name], share=share) for name in asked.ways}
    return rank_layers(desk, task, ways, range(asked.seeds), asked.rate).scores


def across(named: Mapping[str, Sequence[LayerScores]]) -> tuple[Pair, ...]:
    """Every two rankings of different names and different seeds; a seed's rankings share adapters and order of data."""
    names = list(named)
    return tuple(
        (i, j, a, b)
        for place, first in enumerate(names)
        for second in names[place + 1 :]
        for i, a in enumerate(named[first])
        for j, b in enumerate(named[second])
        if i != j
    )


def along(first: Sequence[LayerScores], second: Sequence[LayerScores]) -> tuple[Pair, ...]:
    """Two rankings of the same run, for every seed."""
    return tuple((seed, seed, a, b) for seed, (a, b) in enumerate(zip(first, second, strict=True)))


def within(scores: Sequence[LayerScores]) -> tuple[Pair, ...]:
    """Every two seeds of one procedure."""
    places = range(len(scores))
    return tuple((i, j, scores[i], scores[j]) for i in places for j in places if i < j)


def _between_data(desk: Desk, asked: StabilityPlan) -> Iterator[Overlap]:
    """Table 2: independent LoRA seeds per data set."""
    groups = {
        "styles of answering": [bundled_task(name) for name in asked.styles],
        "a style and other tasks": [bundled_task(name) for name in (asked.styles[0], *asked.others)],
        "real data (stories260K)": list(real_tasks()),
    }
    for title, tasks in groups.items():
        if len(tasks) < 2:
            continue
        found = {task.name: _ranked(desk, task, asked) for task in tasks}
        for way in asked.ways:
            named = {name: scores[way] for name, scores in found.items()}
            yield Overlap("between data sets", f"{title}: {', '.join(named)}", way, across(named), "about 0.90")
            if title == "styles of answering":
                yield Overlap("between seeds", tasks[0].name, way, within(named[tasks[0].name]), "stable")


def _between_seeds(desk: Desk, asked: StabilityPlan) -> Iterator[Overlap]:
    """Table 3: seeds of the masks alone, on one stage 1."""
    task = bundled_task(asked.styles[0])
    for name in asked.ways:
        if WAYS[name].criterion == "learned_mask":
            ways = [RankingMethod("learned_mask", WAYS[name].at(seed)) for seed in range(asked.seeds)]
            scores = _one_stage(desk, task, asked, ways)
            yield Overlap("between seeds of the mask alone", task.name, name, within(scores), "stable")


def _initial_scores(desk: Desk, asked: StabilityPlan) -> Iterator[Overlap]:
    """Table 3: initial scores, on one stage 1 and mask seed."""
    task = bundled_task(asked.styles[0])
    learned = WAYS["ILA (s0 = 4)"].at(0)
    ways = [RankingMethod("learned_mask", {**learned, "initial": initial}) for initial in asked.initial_scores]
    scores = _one_stage(desk, task, asked, ways)
    values = ", ".join(f"{value:g}" for value in asked.initial_scores)
    yield Overlap("between initial scores", f"{task.name}: s0 = {values}", "ILA", within(scores), "stable")


def _one_stage(desk: Desk, task: Task, asked: StabilityPlan, ways: Sequence[RankingMethod]) -> list[LayerScores]:
    """Rankings by several ways that are all given the first seed's stage 1; their own seeds are in their settings."""
    named = {str(place): replace(way, seeded=False) for place, way in enumerate(ways)}
    return [one[0] for one in rank_layers(desk, task, named, [0], asked.rate).scores.values()]


def _milestones(desk: Desk, asked: StabilityPlan) -> Iterator[Overlap]:
    """Table 4: a stage 1 that is stopped early, beside the whole of the same run and of other seeds."""
    task = bundled_task(asked.styles[0])
    whole = _ranked(desk, task, asked)
    for share in asked.milestones:
        part = _ranked(desk, task, asked, share)
        for name in asked.ways:
            label = f"{task.name}: {100 * share:g} % and the whole of the same run"
            paper = "stable" if share >= 0.25 else ""
            yield Overlap("moments of training", label, name, along(part[name], whole[name]), paper)
            label = f"{task.name}: {100 * share:g} % and the whole of another seed"
            yield Overlap("moments of training", label, name, across({"part": part[name], "whole": whole[name]}))


def _amount_of_data(desk: Desk, asked: StabilityPlan) -> Iterator[Overlap]:
    """Open question 2: how many records it takes, at the same number of steps."""
    task = bundled_task(asked.styles[0])
    most = _ranked(desk, task, asked)
    for records in asked.records:
        few = replace(task, name=f"{task.name}-{records}", inputs=replace(task.inputs, records=records))
        found = _ranked(desk, few, asked)
        for way in asked.ways:
            named = {f"{records} records": found[way], f"{task.inputs.records} records": most[way]}
            yield Overlap("amount of data", f"{task.name}: {' and '.join(named)}", way, across(named))


def _kind_of_data(desk: Desk, asked: StabilityPlan) -> Iterator[Overlap]:
    """Open question 2: diversity, a style in answers to one kind of request beside the same style for all kinds."""
    named = {name: _ranked(desk, bundled_task(name), asked) for name in (asked.narrow, asked.styles[0])}
    for way in asked.ways:
        pairs = across({name: scores[way] for name, scores in named.items()})
        yield Overlap("diversity of data", " and ".join(named), way, pairs)


def _models(desk: Desk, asked: StabilityPlan) -> Iterator[Overlap]:
    """Between models, mapped by role and relative depth; the paper compares models of one shape by name."""
    tasks = {model: bundled_task(asked.styles[0], model=model) for model in asked.models}
    tasks |= {task.name: task for task in real_tasks()[:1]}
    found = {model: _ranked(desk, task, asked) for model, task in tasks.items()}
    target = asked.models[0]
    layers = named_layers(load_shape(target), "linear")
    for way in asked.ways:
        for model, scores in found.items():
            if model != target:
                named = {model: [transferred(one, layers) for one in scores[way]], target: found[target][way]}
                yield Overlap("between models", f"{model} and {target}", way, across(named), "about 0.70")
