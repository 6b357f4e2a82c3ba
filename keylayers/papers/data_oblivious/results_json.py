"""Every figure of the study of data-oblivious layers, as JSON: what its tables are made of."""

from collections.abc import Mapping
from typing import Any

from keylayers.papers.data_oblivious.block_training import Adapted, Defended, PerSeed, Removed
from keylayers.papers.data_oblivious.profiles import Profiled, Start
from keylayers.papers.data_oblivious.study import Study


def to_json(study: Study) -> dict[str, Any]:
    """All that was measured."""
    return {
        "profiles": [_profiled(one) for one in study.profiled],
        "adaptation": [_adapted(one) for one in study.adapted],
        "defence": [_defended(one) for one in study.defended],
        "removal": [_removed(one) for one in study.removed],
    }


def _start(start: Start) -> dict[str, Any]:
    taught = None if start.taught is None else list(start.taught)
    return {"start": start.name, "model": start.model, "teach": start.base.teach.fields(), "taught": taught}


def _profiled(one: Profiled) -> dict[str, Any]:
    return {
        **_start(one.start),
        "shifts": {
            way: {corpus: values.tolist() for corpus, values in each.items()} for way, each in one.shifts.items()
        },
        "needed": {
            window: {domain: [values.tolist() for values in seeds] for domain, seeds in each.items()}
            for window, each in one.needed.items()
        },
        "order": list(one.order),
    }


def _adapted(one: Adapted) -> dict[str, Any]:
    return {
        "start": one.start.name,
        "task": one.task.fields(),
        "before": dict(one.before),
        "blocks": _blocks(one.blocks),
        "rates": dict(one.rates),
        "trained": {arm: _seeds(each) for arm, each in one.trained.items()},
    }


def _defended(one: Defended) -> dict[str, Any]:
    return {
        "start": one.start.name,
        "task": one.task.fields(),
        "frozen": one.frozen,
        "before": {trigger: dict(each) for trigger, each in one.before.items()},
        "blocks": _blocks(one.blocks),
        "rates": dict(one.rates),
        "tuned": {trigger: {arm: _seeds(each) for arm, each in arms.items()} for trigger, arms in one.tuned.items()},
    }


def _removed(one: Removed) -> dict[str, Any]:
    return {
        "start": one.start.name,
        "task": one.task.fields(),
        "intact": dict(one.intact),
        "places": dict(one.places),
        "found": [
            {"label": label, "components": count, "way": way, **found}
            for (label, count, way), found in one.found.items()
        ],
    }


def _seeds(each: PerSeed) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key != "train_losses"} for one in each]


def _blocks(found: Mapping[str, tuple[tuple[int, ...], ...]]) -> dict[str, list[list[int]]]:
    return {arm: [list(one) for one in each] for arm, each in found.items()}
