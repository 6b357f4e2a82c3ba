"""What is to be scored, and everything about it that can be refused before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from keylayers import criteria
from keylayers.criteria.protocol import Criterion
from keylayers.data.images import of_images
from keylayers.errors import BadInput, UnknownName
from keylayers.inputs.text import Inputs
from keylayers.layers.naming import GRANULARITIES
from keylayers.measures.measure import MEASURES
from keylayers.recipes.early_stopping import StopEarly
from keylayers.settings import Count, Settings
from keylayers.training.adapters import LoraSettings
from keylayers.training.trainer import TrainSettings


@dataclass(frozen=True)
class ScoreRequest(Settings):
    """What to score, on what, how."""

    inputs: Inputs
    criteria: tuple[str, ...] = ("learned_mask",)
    granularity: str | None = None
    """Of the layers; None: linear, or what the criteria score where they score nothing else."""
    tuned: str | None = None
    """A tuned checkpoint, a peft adapter or an earlier run; None: stage 1 learns the deltas."""
    sibling: str | None = None
    """A second model of the same family; without `tuned`, what tuning changed is the difference to it."""
    measure: str = "loss"
    """What is compared with and without a layer, by criteria that take a measure."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the criteria by name; each takes those it has."""
    stage_one: TrainSettings = field(default_factory=lambda: TrainSettings(learning_rate=3e-3))
    lora: LoraSettings = field(default_factory=LoraSettings)
    batch_size: Count = 16
    """Sequences per batch when scoring."""
    score_records: Count | None = None
    """Most records that the scores rest on; None: as many as the inputs hold out."""
    stop_early: StopEarly | None = None
    """When stage 1 may stop before its last step; None: never."""


@dataclass(frozen=True)
class Asked:
    """A request that can be met."""

    request: ScoreRequest
    """With its granularity decided."""
    criteria: Mapping[str, Criterion]
    settings: Mapping[str, Any]
    """Of each criterion."""


def checked(request: ScoreRequest) -> Asked:
    """The request with its criteria, their settings and the granularity.

    Raises:
        UnknownName, BadInput: if a criterion, a setting, a measure or the granularity cannot be used.
    """
    chosen = {name: criteria.get(name) for name in request.criteria}
    options = {name: settings_of(criterion, request.settings) for name, criterion in chosen.items()}
    _refuse_unused(request.settings, chosen)
    _refuse_to_stop(request, chosen)
    _refuse_unseen(request, chosen)
    _refuse_without_data(request, chosen)
    return Asked(replace(request, granularity=_granularity(request, chosen)), chosen, options)


def _refuse_without_data(request: ScoreRequest, chosen: Mapping[str, Criterion]) -> None:
    if request.inputs.data is not None:
        return
    known = request.tuned is not None or request.sibling is not None
    for name, criterion in chosen.items():
        if "data" in criterion.needs:
            raise BadInput(f"{name} looks at data, and none is named", "name some as `data`")
        if "deltas" in criterion.needs and not known:
            raise BadInput(
                f"{name} looks at what tuning changed, and neither data to tune on nor a tuned model is named",
                "name data as `data`",
                "name a tuned checkpoint, adapter or run as `tuned`",
            )


def _granularity(request: ScoreRequest, chosen: Mapping[str, Criterion]) -> str:
    """The one asked for, or the one that all criteria score; linear (conv, of images) where they leave the choice."""
    able = {name: criterion.granularities for name, criterion in chosen.items() if criterion.granularities}
    if request.granularity is None:
        usual = "conv" if of_images(request.inputs.data) else "linear"
        if len(able) < len(chosen):
            return _usual(able, chosen, usual)
        return next((known[0] for known in able.values()), usual)
    if request.granularity not in GRANULARITIES:
        raise UnknownName("granularity", request.granularity, GRANULARITIES)
    for name, known in able.items():
        if request.granularity not in known:
            raise BadInput(
                f"{name} scores {' or '.join(known)} layers, not {request.granularity}; leave `granularity` out, or "
                f"give `granularity={known[0]}`."
            )
    return request.granularity


def _usual(able: Mapping[str, tuple[str, ...]], chosen: Mapping[str, Criterion], usual: str) -> str:
    """The usual one. Raises BadInput where some criteria can score other layers only."""
    if able:
        others = [name for name in chosen if name not in able]
        first, known = next(iter(able.items()))
        raise BadInput(
            f"{first} scores {' or '.join(known)} layers, but {', '.join(others)} would score {usual} ones; score them "
            f"apart, or all with `granularity={known[0]}`."
        )
    return usual


def settings_of(criterion: Criterion, given: Mapping[str, Any]) -> Any:
    """The criterion's settings with those given that it has. Raises UnknownName or BadInput as `Settings` does."""
    known = {item.name for item in fields(criterion.settings)}
    return criterion.settings(**{key: value for key, value in given.items() if key in known})


def _refuse_unused(given: Mapping[str, Any], chosen: Mapping[str, Criterion]) -> None:
    known = {item.name for criterion in chosen.values() for item in fields(criterion.settings)}
    for key in given:
        if key not in known:
            raise UnknownName(f"setting of {', '.join(chosen)}", key, known)


def _refuse_to_stop(request: ScoreRequest, chosen: Mapping[str, Criterion]) -> None:
    if request.stop_early is None:
        return
    if request.tuned is not None:
        raise BadInput(f"stopping stage 1 early was asked for, but `tuned={request.tuned}` takes its place; drop one.")
    if not any("deltas" in criterion.needs for criterion in chosen.values()):
        raise BadInput(f"stopping stage 1 early was asked for, but {', '.join(chosen)} needs no stage 1; drop one.")


def _refuse_unseen(request: ScoreRequest, chosen: Mapping[str, Criterion]) -> None:
    """Raises for a measure or sibling that no criterion would look at, before anything is loaded."""
    if request.measure not in MEASURES:
        raise UnknownName("measure", request.measure, MEASURES)
    for name, one in chosen.items():
        if one.images and not of_images(request.inputs.data):
            raise BadInput(
                f"{name} takes images, and `data={request.inputs.data}` holds none; give IMAGES.npz with x and y, or "
                "bundled:digits."
            )
    looks = frozenset[str]().union(*(one.needs | one.optional for one in chosen.values()))
    if request.measure != "loss" and "measure" not in looks:
        raise BadInput(f"`measure={request.measure}`: {', '.join(chosen)} takes no measure; drop it.")
    if request.sibling is not None and "sibling" not in looks and ("deltas" not in looks or request.tuned is not None):
        why = "`tuned` takes its place" if "deltas" in looks else f"{', '.join(chosen)} looks at no second model"
        raise BadInput(f"`sibling={request.sibling}`: {why}; drop one.")
