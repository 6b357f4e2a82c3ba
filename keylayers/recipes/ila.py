"""ILA (Shi et al., COLM 2025) and its rivals put to the test: are the rankings stable, and are the layers worth it?"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from keylayers.errors import UnknownName
from keylayers.recipes.cells import Task, compute, scores_in
from keylayers.recipes.inputs import Inputs
from keylayers.runs import RunFolder
from keylayers.scores import LayerScores, Selection
from keylayers.studies.arms import Arm, Budget, chosen_by, controls
from keylayers.studies.cells import Cell, run_cells, workers
from keylayers.training.train import TrainSettings


@dataclass(frozen=True)
class Way:
    """One way of scoring: a criterion, its settings, and how much of stage 1 it looks at."""

    criterion: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    share: float | None = 1.0
    """Of stage 1's steps; None: it needs no stage 1."""
    by: str = "score"
    """How the budget is spent: down the ranking, or by score per parameter (`density`)."""


WAYS = {
    # deviates: the paper does not state its initial score and steps; here 4.0, believed its own, and 100 Adam steps.
    "ILA (s0 = 4)": Way("learned_mask", {"initial": 4.0, "steps": 100}),
    "ILA (s0 = 0)": Way("learned_mask", {"initial": 0.0, "steps": 100}),
    "path integral": Way("path_integral", {"points": 4}),
    "midpoint": Way("path_integral", {"points": 1}),
    "leave one out": Way("leave_one_out"),
    "add one in": Way("add_one_in"),
    "norm": Way("delta_norm"),
    "midpoint, 10 % of stage 1": Way("path_integral", {"points": 1}, 0.1),
    "leave one out, 10 % of stage 1": Way("leave_one_out", {}, 0.1),
    "first step": Way("first_step", {}, None),
    "path integral per parameter": Way("path_integral", {"points": 4}, by="density"),
    "first step per parameter": Way("first_step", {}, None, by="density"),
}
"""Every scoring that is compared."""

MATCHED = ("ILA (s0 = 4)", "path integral", "midpoint, 10 % of stage 1", "first step", "path integral per parameter")
"""Those beside which random sets of their own kinds are trained; all others are judged by the common controls."""

REFERENCE = "path integral"
"""The ranking behind the controls that need one: reversed, depth only, kind only, same size."""


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    tasks: tuple[Task, ...]
    seeds: int = 5
    """Each is a procedure of its own: stage 1, scores, retraining."""
    budget: Budget = field(default_factory=lambda: Budget(0.3))
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    """Learning rates among which every arm chooses, by mean loss on calibration records."""
    rate_seeds: int = 3
    """Seeds that choice looks at; with one alone, arms chose rates at which other seeds fail."""
    ways: tuple[str, ...] = tuple(WAYS)
    matched: tuple[str, ...] = MATCHED


def bundled_task(style: str, steps: int = 60) -> Task:
    """Alignment of the bundled model to a style of answering."""
    inputs = Inputs(data=f"bundled:{style}", records=1024, held_out=96, max_length=192)
    return Task(style, inputs, _training(steps), control="bundled:text")


def real_tasks() -> tuple[Task, ...]:
    """Real data on a small real model, where $KEYLAYERS_MODELS and $KEYLAYERS_DATA name folders that hold them."""
    models, data = (os.environ.get(name) for name in ("KEYLAYERS_MODELS", "KEYLAYERS_DATA"))
    if not models or not data:
        return ()
    sets = {"alpaca": "alignment/alpaca_en_demo.json.gz", "gsm8k": "reasoning/gsm8k_train.jsonl.gz"}
    return tuple(
        Task(
            f"stories260K-{name}",
            Inputs(f"{models}/stories260K", f"{data}/{file}", records=900, held_out=128, max_length=256),
            _training(120),
        )
        for name, file in sets.items()
    )


def _training(steps: int) -> TrainSettings:
    return TrainSettings(steps=steps, batch_size=8, learning_rate=3e-3, save_every=10**9)


def scale_of(name: str) -> Scale:
    """The scale of that name. Raises UnknownName."""
    if name == "smoke":
        ways = ("ILA (s0 = 4)", "path integral", "first step")
        task = replace(bundled_task("pirate", steps=20), control=None)
        return Scale((task,), seeds=2, rates=(3e-3,), ways=ways, matched=("path integral",))
    if name == "small":
        pirate, *styles = map(bundled_task, ("pirate", "formal", "json"))
        alpaca, *others = real_tasks() or (None,)
        return Scale(tuple(task for task in (pirate, alpaca, *styles, *others) if task is not None))
    if name == "full":
        return Scale((*map(bundled_task, ("pirate", "formal", "json", "terse", "bullets")), *real_tasks()), seeds=10)
    raise UnknownName("scale", name, ("smoke", "small", "full"))


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


def reproduce(scale: Scale, run: RunFolder, processes: int = 2) -> list[TaskResults]:
    """Everything of a scale, task by task; what is finished is kept in the run folder, cell by cell."""
    with workers(processes) as pool:
        return [_task(task, scale, run, pool) for task in scale.tasks]


def _task(task: Task, scale: Scale, run: RunFolder, pool: Executor | None) -> TaskResults:
    common, work = {"task": task.fields()}, partial(compute, str(run.path))

    def measure(what: str, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        cells = [Cell(what, {"do": what, **common, **each}) for each in asked]
        return run_cells(cells, work, run, workers=pool, label=f"{task.name}: {what}")

    seeds, ways = range(scale.seeds), {name: WAYS[name] for name in scale.ways}
    before = measure("before", [{}])[0]
    shares = sorted({way.share for way in ways.values() if way.share is not None}, reverse=True)
    stages = dict(
        zip(
            [(seed, share) for share in shares for seed in seeds],
            measure("stage_one", [{"seed": seed, "share": share} for share in shares for seed in seeds]),
            strict=True,
        )
    )
    asked = [
        {
            "criterion": way.criterion,
            "settings": {**way.settings, **({"seed": seed} if way.criterion in ("learned_mask", "first_step") else {})},
            "adapter": None if way.share is None else stages[seed, way.share]["adapter"],
            "batch_size": task.training.batch_size,
        }
        for way in ways.values()
        for seed in seeds
    ]
    found = iter(shared(partial(measure, "score"), asked))
    scored = {name: [next(found) for _ in seeds] for name in ways}
    scores = {name: tuple(scores_in(run.path, one) for one in results) for name, results in scored.items()}
    seconds = {
        name: tuple(
            results[seed]["seconds"] + (0.0 if ways[name].share is None else stages[seed, ways[name].share]["seconds"])  # type: ignore[index]
            for seed in seeds
        )
        for name, results in scored.items()
    }
    arms = arms_of(scores, scale)
    pairs = [(name, seed) for name in arms for seed in seeds]
    asked = [
        {"adapter": stages[seed, 1.0]["adapter"], "layers": list(arms[name].choice(seed).names)} for name, seed in pairs
    ]
    losses = dict(zip(pairs, (one["test"] for one in shared(partial(measure, "keep"), asked)), strict=True))
    kept = {name: tuple(losses[name, seed] for seed in seeds) for name in arms}
    retrained, rates = _retrained(arms, scale, measure)
    full = [one["seconds"] for one in retrained["all"]]
    return TaskResults(task, before, scores, seconds, tuple(full), kept, arms, retrained, rates)


def arms_of(scores: Mapping[str, tuple[LayerScores, ...]], scale: Scale) -> dict[str, Arm]:
    """Every arm at the scale's budget: one per way of scoring, random sets of its kinds where asked, the controls."""
    arms = {
        name: Arm(name, tuple(chosen_by(one, scale.budget, WAYS[name].by) for one in each))
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
    for name in ("reversed", "depth only", "kind only", "last", "first", "random", "random, same size"):
        arms[name] = Arm(name, tuple(each[name].choice(0) for each in reference))
    layers = scores[REFERENCE][0].layers
    arms["all"] = Arm("all", (Selection.of(layers, names=[layer.name for layer in layers], allow_total=True),))
    return arms


def shared(measure: Any, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What `measure` gives for each, asked once where arms chose the same layers."""
    unique = {repr(cell): cell for cell in asked}
    found = dict(zip(unique, measure(list(unique.values())), strict=True))
    return [found[repr(cell)] for cell in asked]


def _retrained(
    arms: Mapping[str, Arm], scale: Scale, measure: Any
) -> tuple[dict[str, tuple[dict[str, Any], ...]], dict[str, float]]:
    """Each arm trained with every seed, at the learning rate that served it best on calibration records."""

    def asked(name: str, seed: int, rate: float) -> dict[str, Any]:
        return {"layers": list(arms[name].choice(seed).names), "seed": seed, "lr": rate}

    ask = partial(shared, partial(measure, "retrain"))
    few = range(min(scale.rate_seeds, scale.seeds) if len(scale.rates) > 1 else 0)
    tried = [(name, seed, rate) for seed in few for name in arms for rate in scale.rates]
    found = dict(zip(tried, ask([asked(*one) for one in tried]), strict=True))

    def on_calibration(name: str, rate: float) -> float:
        return sum(found[name, seed, rate]["calibration"] for seed in few)

    rates = {name: min(scale.rates, key=lambda rate: on_calibration(name, rate)) for name in arms}
    rest = [(name, seed, rates[name]) for seed in range(len(few), scale.seeds) for name in arms]
    found |= dict(zip(rest, ask([asked(*one) for one in rest]), strict=True))
    return {name: tuple(found[name, seed, rates[name]] for seed in range(scale.seeds)) for name in arms}, rates
