"""Score a model's layers on a data set: learn or load what tuning changes, then ask each criterion."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from keylayers import criteria
from keylayers.criteria.criterion import Criterion, Evidence
from keylayers.data.batches import batches
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.deltas import Deltas, deltas_from_checkpoints
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.tensors import tensors_on_disk
from keylayers.models.loading import LoadedModel
from keylayers.recipes.inputs import Inputs, Prepared, adapter_in, prepare_data
from keylayers.runs import RunFolder, progress, versions
from keylayers.scores import LayerScores, Provenance
from keylayers.scores.files import load, save
from keylayers.training.adapters import LoraSettings
from keylayers.training.stage_one import learn_deltas, load_deltas
from keylayers.training.train import TrainSettings


@dataclass(frozen=True)
class ScoreRequest:
    """What to score, on what, how."""

    inputs: Inputs = field(default_factory=Inputs)
    criteria: tuple[str, ...] = ("learned_mask",)
    granularity: str = "linear"
    tuned: str | None = None
    """A tuned checkpoint, a peft adapter or an earlier scoring run; None: stage 1 learns the deltas."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the criteria by name; each takes those it has."""
    stage_one: TrainSettings = field(default_factory=lambda: TrainSettings(learning_rate=3e-3))
    lora: LoraSettings = field(default_factory=LoraSettings)
    batch_size: int = 16
    """Sequences per batch when scoring."""


def score(request: ScoreRequest, run: RunFolder) -> dict[str, LayerScores]:
    """Scores by criterion name; each is also in the run folder as NAME.json, where a repeated call finds it.

    # deviates: the paper learns masks on the tuning data; here on calibration records, disjoint from it, because scores
    # that are learnt where the deltas were fitted favour the layers that overfit.
    """
    chosen = {name: criteria.get(name) for name in request.criteria}
    options = {name: settings_of(criterion, request.settings) for name, criterion in chosen.items()}
    _refuse_unused(request.settings, chosen)
    files = {name: run.path / f"{name}.json" for name in chosen}
    done = {name: load(file) for name, file in files.items() if file.exists()}
    missing = {name: criterion for name, criterion in chosen.items() if name not in done}
    if missing:
        loaded = request.inputs.load_model()
        layers = named_layers(loaded.model, request.granularity)
        data = prepare_data(request.inputs, loaded)
        deltas = None
        if any("deltas" in criterion.needs for criterion in missing.values()):
            deltas = deltas_for(request, run, loaded, layers, data)
        for name, criterion in missing.items():
            evidence = evidence_for(request, run, loaded, data, deltas)
            with progress(1, name) as bar:
                result = criterion(with_progress(evidence, bar), layers, options[name])
            save(result, files[name])
            done[name] = result
            run.log("scored", criterion=name, seconds=result.provenance.seconds)
    return {name: done[name] for name in chosen}


def settings_of(criterion: Criterion, given: Mapping[str, Any]) -> Any:
    """The criterion's settings with those given that it has. Raises BadInput for a value of the wrong type."""
    from pydantic import TypeAdapter, ValidationError

    known = {item.name for item in fields(criterion.settings)}
    mine = {key: value for key, value in given.items() if key in known}
    try:
        return TypeAdapter(criterion.settings).validate_python(mine)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"--set {first['loc'][0]}={first['input']}: {first['msg'].lower()}.") from error


def _refuse_unused(given: Mapping[str, Any], chosen: Mapping[str, Criterion]) -> None:
    known = {item.name for criterion in chosen.values() for item in fields(criterion.settings)}
    for key in given:
        if key not in known:
            raise UnknownName(f"setting of {', '.join(chosen)}", key, known)


def deltas_for(
    request: ScoreRequest, run: RunFolder, loaded: LoadedModel, layers: tuple[Layer, ...], data: Prepared
) -> Deltas:
    """What tuning changed: from the named tuned model, or from a LoRA run of our own, kept in the run folder."""
    if request.tuned is not None:
        place = Path(request.tuned)
        if (adapter := adapter_in(place)) is not None:
            return load_deltas(loaded.model, layers, adapter)
        if not place.exists():
            raise BadInput(
                f"no tuned model at {request.tuned!r}: give a checkpoint folder, a peft adapter or a scoring run."
            )
        return deltas_from_checkpoints(loaded.model, tensors_on_disk(place), layers)
    stored = run.path / "stage1"
    if run.has_part("stage1"):
        return load_deltas(loaded.model, layers, stored / "adapter")
    with progress(request.stage_one.steps, "stage 1: LoRA on all layers") as bar:
        deltas, log = learn_deltas(
            loaded.model,
            layers,
            data.train,
            lora=request.lora,
            settings=request.stage_one,
            folder=stored,
            report=lambda step, steps, loss: bar.advance(step - bar.done, text=f"loss {loss:.3f}"),
        )
    run.part("stage1", lambda: {"losses": list(log.losses), "train_seconds": log.seconds, "peak_bytes": log.peak_bytes})
    return deltas


def evidence_for(
    request: ScoreRequest, run: RunFolder, loaded: LoadedModel, data: Prepared, deltas: Deltas | None
) -> Evidence:
    """All that a criterion may look at, with where it came from."""
    return Evidence(
        model=loaded.model,
        weights=tensors_on_disk(loaded.folder) if loaded.folder else None,
        deltas=deltas,
        data=batches(data.calibration, request.batch_size, shuffle=False),
        granularity=request.granularity,
        provenance=Provenance(model=loaded.identity(), data=data.identity, versions=versions()),
        checkpoint=run.checkpoint,
    )


def with_progress(evidence: Evidence, bar: Any) -> Evidence:
    """The evidence with its progress shown by a bar, whose total the criterion says."""
    from dataclasses import replace

    def report(step: int, steps: int, loss: float) -> None:
        bar.total = steps
        bar.advance(step - bar.done, text=f"loss {loss:.3f}" if loss else "")

    return replace(evidence, progress=report)
