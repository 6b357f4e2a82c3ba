"""Suppressing model shortcuts (Yang et al., ICASSP 2023) put to the test: does turning one skip connection down make
fine-tuning remove a backdoor, and which skip?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from keylayers.errors import UnknownName
from keylayers.measures.backdoor import LEAST_SUCCESS
from keylayers.papers.ssft.cells import ORACLE, OWN, FinetuneSchedule, best, compute, diverged
from keylayers.papers.ssft.results import AS_RELEASED, RELEASED_TWIN, SUCCESS, TWO, WHOLE, Cleansing, Results
from keylayers.runs import RunFolder
from keylayers.studies.backdoor_tasks import CONSISTENT, BackdoorTask, digits, needs, real
from keylayers.studies.lab import Lab
from keylayers.studies.runner import workers


@dataclass(frozen=True)
class Scale:
    """How much of the study is run."""

    cleansings: tuple[Cleansing, ...] = field(default_factory=lambda: (of_digits(),))


def of_digits(seeds: int = 5) -> Cleansing:
    """The bundled digits."""
    return Cleansing(_without_consistent(digits(seeds)), FinetuneSchedule(40, 0.05, 50))


def of_real(seeds: int = 3) -> tuple[Cleansing, ...]:
    """MNIST and CIFAR-10, where they are there: a trigger in one place and one all over the image.

    Fewer images to tune on than where screens are fitted: every skip of every victim is tried, twice tuned.
    """
    made = []
    for watched in map(_without_consistent, real()):
        attacks = {name: watched.attacks[name] for name in ("patch", "blend")}
        fewer = {"reference": 400, "calibration": 150, "test": 400}
        task = replace(watched.task, sizes={**watched.task.sizes, **fewer})
        made.append(Cleansing(BackdoorTask(task, attacks, seeds), FinetuneSchedule(5, 0.02, 50)))
    return tuple(made)


def _without_consistent(watched: BackdoorTask) -> BackdoorTask:
    """The attacks that need no benign model: on these images the other succeeds too seldom to be judged."""
    attacks = {name: attack for name, attack in watched.attacks.items() if name != CONSISTENT}
    return BackdoorTask(watched.task, attacks, watched.seeds)


def reproduce(scale: Scale, run: RunFolder, processes: int = 2) -> Iterator[tuple[Results, ...]]:
    """What is known after every task; what is finished is kept in the run folder, cell by cell."""
    done: list[Results] = []
    with workers(processes) as pool:
        lab = Lab(run, compute, pool)
        for cleansing in scale.cleansings:
            done.append(results(lab, cleansing))
            yield tuple(done)


def results(lab: Lab, cleansing: Cleansing) -> Results:
    """Victims, the skips that each rule blames, and every suppression, all judged by who holds the trigger.

    A model whose own training diverged is one that nobody attacked with success, or whose costs are not known.
    """
    watched = cleansing.watched
    task, seeds = watched.task.fields(), range(watched.seeds)
    attacks = {name: asdict(one) for name, one in watched.attacks.items()}
    clean = lab.ask("make_victim", [{"task": task, "seed": seed, "attack": None} for seed in seeds])
    every = [(name, seed) for name in attacks for seed in seeds]
    assert not any(needs(name) for name in attacks)
    made = lab.ask("make_victim", [{"task": task, "seed": seed, "attack": attacks[name]} for name, seed in every])
    victims = dict(zip(every, made, strict=True))
    success = {name: tuple(_success(victims[name, seed]) for seed in seeds) for name in attacks}
    places = [(name, seed) for name, seed in every if (success[name][seed] or 0) >= LEAST_SUCCESS]
    shared = {
        (name, seed): {"task": task, "seed": seed, "attack": attacks[name], "file": victims[name, seed]["file"]}
        for name, seed in places
    }
    blamed = dict(zip(places, lab.ask("blamed", [shared[place] for place in places]), strict=True))
    found = lab.ask("skips", [{"task": task}])[0]
    skips, stages = tuple(found["names"]), tuple(found["stages"])
    keys, asked = [], []
    for place in places:
        for key, arm in _arms(skips, stages, blamed[place]["scores"], cleansing).items():
            keys.append((*place, key))
            asked.append({**shared[place], **arm})
    outcomes = dict(zip(keys, lab.ask("suppressed", asked), strict=True))
    silenced = {"factor": 0.0, "tune": "stage", "recipe": asdict(cleansing.recipe)}
    whole = [seed for seed in seeds if places and not diverged(clean[seed])]  # no victim: nothing to weigh costs with
    each = [(seed, skip) for seed in whole for skip in skips]
    asked = [
        {"task": task, "seed": seed, "file": clean[seed]["file"], "skips": [skip], **silenced} for seed, skip in each
    ]
    costs = dict(zip(each, lab.ask("cost", asked), strict=True))
    return Results(cleansing, skips, stages, success, blamed, outcomes, costs)


def _success(victim: Mapping[str, Any]) -> float | None:
    return None if diverged(victim) else float(victim["figures"][SUCCESS][0])


def _arms(
    skips: Sequence[str], stages: Sequence[str], scores: Mapping[str, Any], cleansing: Cleansing
) -> dict[str, dict[str, Any]]:
    """Every outcome that is asked for of one victim, by key; of the twins, nothing later."""
    shared = {"tune": "stage", "recipe": asdict(cleansing.recipe)}
    whole, twin = {"factor": 1.0, **shared}, {"factor": 1.0, **shared, "later": False}
    arms: dict[str, dict[str, Any]] = {skip: {"skips": [skip], "factor": 0.0, **shared} for skip in skips}
    first = dict(zip(reversed(stages), reversed(skips), strict=True))
    arms |= {f"{stage} alone": {"skips": [skip], **twin} for stage, skip in first.items()}
    arms[WHOLE] = {"skips": [skips[0]], **whole, "tune": "all"}
    if scores[OWN] is not None and len(pair := best(scores[OWN], 2)) > 1:
        arms[TWO] = {"skips": [skips[index] for index in pair], "factor": 0.0, **shared}
        both = list(dict.fromkeys(stages[index] for index in pair))
        if len(both) > 1:
            arms[f"{' and '.join(both)} alone"] = {"skips": [first[stage] for stage in both], **twin}
    if scores[ORACLE] is not None:
        chosen = [skips[best(scores[ORACLE])[0]]]
        oracle = {"skips": chosen, "tune": "stage", "recipe": asdict(cleansing.released), "oracle": True}
        arms[AS_RELEASED] = {"factor": 0.0, **oracle}
        arms[RELEASED_TWIN] = {"factor": 1.0, **oracle, "later": False}
    return arms


def scale_of(name: str) -> Scale:
    """The scale of that name. Raises UnknownName."""
    scales = {"smoke": (of_digits(2),), "small": (of_digits(), *of_real()), "full": (of_digits(20), *of_real(5))}
    if name not in scales:
        raise UnknownName("scale", name, scales)
    return Scale(scales[name])
