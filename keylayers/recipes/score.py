"""Score a model's layers on a data set: learn or load what tuning changes, then ask each criterion."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from keylayers import criteria
from keylayers.criteria.criterion import Criterion, Evidence
from keylayers.criteria.observing import ObservingCriterion, observe_together
from keylayers.data.batches import batches
from keylayers.data.tokenise import IGNORED
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.deltas import Deltas
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.tensors import TensorSource, tensors_in_memory
from keylayers.measures.measure import MEASURES, measure_named
from keylayers.models import deltas_of
from keylayers.models.loading import LoadedModel
from keylayers.recipes.inputs import Inputs, Prepared, prepare_data, tuned_place
from keylayers.recipes.settling import StopEarly, learn_until_settled, settling_of
from keylayers.recipes.settling_words import as_provenance
from keylayers.recipes.unloaded import unloaded
from keylayers.runs import RunFolder, note, progress, versions
from keylayers.scores import LayerScores, Provenance
from keylayers.scores.files import load, save
from keylayers.training.adapters import LoraSettings
from keylayers.training.stage_one import ADAPTER, learn_deltas
from keylayers.training.states import forget
from keylayers.training.train import TrainSettings

STAGE_ONE = "stage1"


@dataclass(frozen=True)
class ScoreRequest:
    """What to score, on what, how."""

    inputs: Inputs = field(default_factory=Inputs)
    criteria: tuple[str, ...] = ("learned_mask",)
    granularity: str = "linear"
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
    batch_size: int = 16
    """Sequences per batch when scoring."""
    stop_early: StopEarly | None = None
    """When stage 1 may stop before its last step; None: never."""


def score(request: ScoreRequest, run: RunFolder) -> dict[str, LayerScores]:
    """Scores by criterion name; each is also in the run folder as NAME.json, where a repeated call finds it.

    Raises:
        UnknownName, BadInput: before anything is loaded, if a criterion, a setting or the data cannot be used.
    """
    # deviates: the paper learns masks on the tuning data; here on calibration records, disjoint from it, because scores
    # that are learnt where the deltas were fitted favour the layers that overfit.
    chosen = {name: criteria.get(name) for name in request.criteria}
    options = {name: settings_of(criterion, request.settings) for name, criterion in chosen.items()}
    _refuse_unused(request.settings, chosen)
    _refuse_to_stop(request, chosen)
    _refuse_unseen(request, chosen)
    files = {name: run.path / f"{name}.json" for name in chosen}
    done = {name: load(file) for name, file in files.items() if file.exists()}
    missing = {name: criterion for name, criterion in chosen.items() if name not in done}
    if missing:
        needs = frozenset[str]().union(*(criterion.needs for criterion in missing.values()))
        evidence, layers = _evidence(request, run, needs)
        observed = _observed(evidence, layers, missing, options)
        for name, criterion in missing.items():
            if name in observed:
                result = observed[name]
            else:
                with progress[int](1, name) as bar:
                    result = criterion(_with_progress(evidence, bar), layers, options[name])
            if "deltas" in criterion.needs and (found := settling_of(run.path)) is not None:
                settings = {**result.provenance.settings, "stage_one": as_provenance(found)}
                result = replace(result, provenance=replace(result.provenance, settings=settings))
            save(result, files[name])
            done[name] = result
            run.log("scored", criterion=name, seconds=result.provenance.seconds)
    return {name: done[name] for name in chosen}


def _observed(
    evidence: Evidence, layers: tuple[Layer, ...], missing: Mapping[str, Criterion], options: Mapping[str, Any]
) -> dict[str, LayerScores]:
    """Scores of the criteria that only look at hidden states, all from one pass over the data."""
    asked = {
        name: (criterion, options[name])
        for name, criterion in missing.items()
        if isinstance(criterion, ObservingCriterion)
    }
    if not asked:
        return {}
    with progress[int](1, ", ".join(asked)) as bar:
        return observe_together(_with_progress(evidence, bar), layers, asked)


def _evidence(request: ScoreRequest, run: RunFolder, needs: frozenset[str]) -> tuple[Evidence, tuple[Layer, ...]]:
    """All that is needed, and the layers; the model is loaded only where something runs it."""
    found = unloaded(request.inputs, needs)
    if found is not None:
        shape, weights = found
        evidence = evidence_for(request, run, shape, None, None, weights)
        return replace(evidence, model=None), named_layers(shape.model, request.granularity)
    loaded, layers, data = _load(request, needs)
    learns = "deltas" in needs and (request.tuned is not None or request.sibling is None)
    deltas = deltas_for(request, run, loaded, layers, data) if learns else None
    weights = tensors_in_memory(loaded.model, loaded.source) if "weights" in needs else None
    return evidence_for(request, run, loaded, data, deltas, weights), layers


def _load(request: ScoreRequest, needs: frozenset[str]) -> tuple[LoadedModel, tuple[Layer, ...], Prepared | None]:
    """The model, its layers, and the data where some criterion or stage 1 looks at any."""
    place = None if request.tuned is None else tuned_place(request.tuned)
    looks = "data" in needs or ("deltas" in needs and place is None and request.sibling is None)
    if looks:
        note(f"reading {request.inputs.data}")
    splits = request.inputs.load_splits() if looks else None
    loaded = request.inputs.load_model()
    layers = named_layers(loaded.model, request.granularity)
    return loaded, layers, prepare_data(request.inputs, loaded, splits) if looks else None


def settings_of(criterion: Criterion, given: Mapping[str, Any]) -> Any:
    """The criterion's settings with those given that it has. Raises BadInput for a value of the wrong type."""
    from pydantic import TypeAdapter, ValidationError

    known = {item.name for item in fields(criterion.settings)}
    mine = {key: value for key, value in given.items() if key in known}
    try:
        return TypeAdapter(criterion.settings).validate_python(mine)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(
            f"setting {first['loc'][0]}={first['input']} of {criterion.name}: {first['msg'].lower()}."
        ) from error


def _refuse_unused(given: Mapping[str, Any], chosen: Mapping[str, Criterion]) -> None:
    known = {item.name for criterion in chosen.values() for item in fields(criterion.settings)}
    for key in given:
        if key not in known:
            raise UnknownName(f"setting of {', '.join(chosen)}", key, known)


def _refuse_to_stop(request: ScoreRequest, chosen: Mapping[str, Criterion]) -> None:
    if request.stop_early is None:
        return
    if request.tuned is not None:
        raise BadInput(f"stopping stage 1 early was asked for, but --tuned {request.tuned} takes its place; drop one.")
    if not any("deltas" in criterion.needs for criterion in chosen.values()):
        raise BadInput(f"stopping stage 1 early was asked for, but {', '.join(chosen)} needs no stage 1; drop one.")


def _refuse_unseen(request: ScoreRequest, chosen: Mapping[str, Criterion]) -> None:
    """Raises for a measure or sibling that no criterion would look at, before anything is loaded."""
    if request.measure not in MEASURES:
        raise UnknownName("measure", request.measure, MEASURES)
    looks = frozenset[str]().union(*(one.needs | one.optional for one in chosen.values()))
    if request.measure != "loss" and "measure" not in looks:
        raise BadInput(f"--measure {request.measure}: {', '.join(chosen)} takes no measure; drop it.")
    if request.sibling is not None and "sibling" not in looks and ("deltas" not in looks or request.tuned is not None):
        why = "--tuned takes its place" if "deltas" in looks else f"{', '.join(chosen)} looks at no second model"
        raise BadInput(f"--sibling {request.sibling}: {why}; drop one.")


def deltas_for(
    request: ScoreRequest, run: RunFolder, loaded: LoadedModel, layers: tuple[Layer, ...], data: Prepared | None
) -> Deltas:
    """What tuning changed: from the named tuned model, or from a LoRA run of our own, kept in the run folder."""
    if request.tuned is not None:
        trusted = request.inputs.trust_remote_code
        return deltas_of(loaded.model, tuned_place(request.tuned), layers, trust_remote_code=trusted)
    stored = run.path / STAGE_ONE
    if run.has_part(STAGE_ONE):
        forget(stored)
        return deltas_of(loaded.model, stored / ADAPTER, layers)
    assert data is not None
    adapted = named_layers(loaded.model, "linear")
    _require_overlap(adapted, layers, request.granularity)
    with progress[int](request.stage_one.steps, "stage 1: LoRA on all layers") as bar:

        def report(step: int, steps: int, loss: float) -> None:
            bar.advance(step - bar.done, text=f"loss {loss:.3f}")

        if request.stop_early is None:
            deltas, log = learn_deltas(
                loaded.model,
                adapted,
                data.train,
                scored=layers,
                lora=request.lora,
                settings=request.stage_one,
                folder=stored,
                report=report,
            )
        else:
            deltas, log = learn_until_settled(
                request.stop_early,
                run,
                stored,
                evidence_for(request, run, loaded, data, None),
                adapted,
                layers,
                data.train,
                lora=request.lora,
                training=request.stage_one,
                report=report,
            )
    run.part(
        STAGE_ONE, lambda: {"losses": list(log.losses), "train_seconds": log.seconds, "peak_bytes": log.peak_bytes}
    )
    forget(stored)
    return deltas


def _require_overlap(adapted: tuple[Layer, ...], layers: tuple[Layer, ...], granularity: str) -> None:
    """Raises BadInput, before stage 1 trains, if its LoRA could change none of the scored layers."""
    changed = {name for layer in adapted for name in layer.parameters}
    if not any(name.split("[")[0] in changed for layer in layers for name in layer.parameters):
        raise BadInput(
            f"stage 1 trains LoRA on linear layers, which holds no layer of granularity {granularity!r}; give a model "
            "that was tuned in full as --tuned, or score at --granularity linear."
        )


def evidence_for(
    request: ScoreRequest,
    run: RunFolder,
    loaded: LoadedModel,
    data: Prepared | None,
    deltas: Deltas | None,
    weights: TensorSource | None = None,
) -> Evidence:
    """All that a criterion may look at, with where it came from."""
    measure = sibling = None
    if data is not None:
        longest = max(sum(label != IGNORED for label in labels) for labels in data.calibration.labels)
        measure = measure_named(
            request.measure,
            tokenizer=loaded.tokenizer,
            records=data.records,
            max_new_tokens=longest,
            batch_size=request.batch_size,
        )
    if request.sibling is not None:
        sibling = replace(request.inputs, model=request.sibling, weights=None).load_model().model
    return Evidence(
        model=loaded.model,
        weights=weights,
        deltas=deltas,
        sibling=sibling,
        measure=measure,
        data=batches(data.calibration, request.batch_size, shuffle=False) if data is not None else None,
        granularity=request.granularity,
        provenance=Provenance(
            model=loaded.identity(), data=data.identity if data is not None else (), versions=versions()
        ),
        checkpoint=run.checkpoint,
    )


def _with_progress(evidence: Evidence, bar: Any) -> Evidence:
    """The evidence with its progress shown by a bar, whose total the criterion says."""

    def report(step: int, steps: int, loss: float) -> None:
        bar.total = steps
        bar.advance(step - bar.done, text=f"loss {loss:.3f}" if loss else "")

    return replace(evidence, progress=report)
