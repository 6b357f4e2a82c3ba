"""Everything that criteria look at, gathered: the model or its weights, data, and what tuning changed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from keylayers.criteria.protocol import Evidence
from keylayers.criteria.support.batch_groups import fitting_size
from keylayers.data.batches import Collated, batches
from keylayers.data.images import of_images
from keylayers.data.splits import Splits, assert_disjoint
from keylayers.data.tokenisation import IGNORED
from keylayers.errors import BadInput
from keylayers.inputs.reachable import RECORDS, within_adapters, within_reach
from keylayers.inputs.text import Prepared, prepare_data, require_unseen, trained_here, tuned_place
from keylayers.inputs.weights_only import read_weights
from keylayers.layers.deltas import Deltas
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.tensors import TensorSource, tensors_in_memory
from keylayers.measures.measure import measure_named
from keylayers.measures.reach import reached
from keylayers.models import deltas_of
from keylayers.models.families import predicts_tokens
from keylayers.models.loading import LoadedModel
from keylayers.models.sources import local_folder
from keylayers.recipes.early_stopping import learn_until_settled
from keylayers.recipes.image_evidence import gather_evidence
from keylayers.recipes.score_request import ScoreRequest
from keylayers.runs import Progress, RunFolder, note, versions
from keylayers.runs.seals import check_seal
from keylayers.scores import Provenance
from keylayers.training.lora_names import adaptable
from keylayers.training.stage_one import ADAPTER, learn_deltas
from keylayers.training.states import forget

STAGE_ONE = "stage1"
OF_STAGE_ONE = "LoRA of stage 1"
"""What scores say they are scores of: the same for deltas just learnt and for those that a resumed run reads back."""


Fitting = Callable[[Sequence[Layer], int], None]
"""(layers, number of batches) -> nothing. Raises BadInput where some criterion's settings do not go with them."""


def gathered(
    request: ScoreRequest, run: RunFolder, needs: frozenset[str], fit: Fitting = lambda layers, batches: None
) -> tuple[Evidence, tuple[Layer, ...]]:
    """All that is needed, and the layers; the model is loaded only where something runs it.

    `fit` looks at the layers and the number of batches as soon as they are known, before anything loads or trains.
    """
    if "data" in needs and of_images(request.inputs.data):
        return gather_evidence(request, run, needs)
    found = read_weights(request.inputs, needs)
    if found is not None:
        shape, weights = found
        evidence = evidence_for(request, run, shape, None, None, weights)
        return replace(evidence, model=None), named_layers(shape.model, _granularity(request))
    loaded, layers, data = _load(request, needs, fit)
    learns = "deltas" in needs and (request.tuned is not None or request.sibling is None)
    deltas = deltas_for(request, run, loaded, layers, data) if learns else None
    weights = tensors_in_memory(loaded.model, loaded.source) if "weights" in needs else None
    return evidence_for(request, run, loaded, data, deltas, weights), layers


def _load(
    request: ScoreRequest, needs: frozenset[str], fit: Fitting
) -> tuple[LoadedModel, tuple[Layer, ...], Prepared | None]:
    """The model, its layers, and the data where some criterion or stage 1 looks at any."""
    place = None if request.tuned is None else tuned_place(request.tuned)
    if place is not None:
        local_folder(place)  # that there is such a folder is known before anything loads
    looks = "data" in needs or ("deltas" in needs and place is None and request.sibling is None)
    if looks:
        note(f"reading {request.inputs.data}")
    trains = "deltas" in needs and place is None and request.sibling is None
    splits = _records(request, trains, changed="deltas" in needs and not trains) if looks else None

    def prepared(model: LoadedModel) -> Prepared | None:
        data = prepare_data(request.inputs, model, splits) if looks else None
        fit(named_layers(model.model, _granularity(request)), 0 if data is None else _batches(request, data))
        return data

    outline = request.inputs.outline()
    data = None if outline is None else prepared(outline)
    loaded = request.inputs.load_model()
    if outline is None:
        data = prepared(loaded)
    layers = named_layers(loaded.model, _granularity(request))
    if data is None:
        return loaded, layers, None
    require_unseen(loaded, data)
    if predicts_tokens(loaded.model):  # else there is no loss that could depend on a layer, only hidden states
        layers = within_reach(loaded.model, layers, data.train if len(data.train) else data.calibration)
    if "deltas" in needs and place is None and request.sibling is None:  # of what stage 1 cannot train nothing is known
        layers = within_adapters(loaded.model, layers)
    return loaded, layers, data


def _records(request: ScoreRequest, trains: bool, changed: bool) -> Splits:
    """The records to score on: apart from those that stage 1 or a run of ours trains on, else all that are given.

    What changed a model elsewhere may have been these very records; more than the calibration part is for the user to
    say.
    """
    most = request.score_records or request.inputs.held_out
    if trains or trained_here(request.tuned, request.inputs):
        splits = request.inputs.load_splits(most)
        assert_disjoint(splits.train, splits.calibration)
        return splits
    if changed and request.score_records is None:
        splits = request.inputs.load_splits(most)
        note(
            f"the tuned model may have been trained on {request.inputs.data}, so its calibration part alone is scored "
            "on; where it was not, `score_records=256` takes more"
        )
        return splits
    pool = request.inputs.load_pool(most)
    if "test" in (pool.calibration.split or "").split(", "):
        note(
            f"{request.inputs.data} has few records, so those of its test part are scored on, too: judge what these "
            "scores select on other data"
        )
    return replace(pool, train=pool.train if request.tuned else replace(pool.train, records=()))


def _batches(request: ScoreRequest, data: Prepared) -> int:
    return -(-len(data.calibration) // _size(request, data))


def _size(request: ScoreRequest, data: Prepared) -> int:
    return fitting_size(len(data.calibration), request.batch_size)


def deltas_for(
    request: ScoreRequest, run: RunFolder, loaded: LoadedModel, layers: tuple[Layer, ...], data: Prepared | None
) -> Deltas:
    """What tuning changed: from the named tuned model, or from a LoRA run of our own, kept in the run folder."""
    if request.tuned is not None:
        deltas = deltas_of(loaded.model, tuned_place(request.tuned), layers, **request.inputs.trust)
        for text in deltas.notes:
            note(text)
        return deltas
    stored = run.path / STAGE_ONE
    if run.has_part(STAGE_ONE):
        forget(stored)
        part = run.path / "parts" / f"{STAGE_ONE}.json"
        check_seal(
            stored / ADAPTER, "start over with `fresh`", f"delete {str(part)!r} to have stage 1 alone trained again"
        )
        return replace(deltas_of(loaded.model, stored / ADAPTER, layers), source=OF_STAGE_ONE)
    assert data is not None
    linear = adaptable(loaded.model, named_layers(loaded.model, "linear"))
    adapted = reached(loaded.model, linear, batches(data.train, RECORDS, shuffle=False))
    _require_overlap(adapted, layers, _granularity(request))
    with Progress[int](request.stage_one.steps, "stage 1: LoRA on all layers") as bar:

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
    kept = {"losses": list(log.losses), "train_seconds": log.seconds, "peak_bytes": log.peak_bytes}
    run.part(STAGE_ONE, lambda: {**kept, "padding": log.padding})
    note(f"stage 1: {log.padding:.2f} tokens computed for each real one")
    forget(stored)
    return replace(deltas, source=OF_STAGE_ONE)


def _require_overlap(adapted: tuple[Layer, ...], layers: tuple[Layer, ...], granularity: str) -> None:
    """Raises BadInput, before stage 1 trains, if its LoRA could change none of the scored layers."""
    changed = {name for layer in adapted for name in layer.parameters}
    if not any(name.split("[")[0] in changed for layer in layers for name in layer.parameters):
        raise BadInput(
            f"stage 1 trains LoRA on linear layers, which changes no layer of granularity {granularity!r}",
            "give a model that was tuned in full as `tuned`",
            "score at `granularity=linear`",
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
    identity: tuple[dict[str, Any], ...] = ()
    if data is not None:
        longest = max(sum(label != IGNORED for label in labels) for labels in data.calibration.labels)
        measure = measure_named(
            request.measure,
            tokenizer=loaded.tokenizer,
            records=data.records,
            max_new_tokens=longest,
            batch_size=request.batch_size,
        )
        known = {"batches": _batches(request, data), "tokens": data.calibration.supervised}
        note(
            f"scoring on {len(data.calibration)} records ({known['tokens']:,} tokens to predict) in {known['batches']} "
            "batches"
        )
        identity = (*data.identity[:-1], {**data.identity[-1], **known})
    if request.sibling is not None:
        sibling = replace(request.inputs, model=request.sibling, weights=None).load_model().model
    return Evidence(
        model=loaded.model,
        weights=weights,
        deltas=deltas,
        sibling=sibling,
        measure=measure,
        data=batches(data.calibration, _size(request, data), shuffle=False) if data is not None else None,
        training=Collated.of(data.train, request.batch_size) if data is not None and len(data.train) else None,
        granularity=_granularity(request),
        provenance=Provenance(model=loaded.identity(), data=identity, versions=versions()),
        checkpoint=run.checkpoint,
    )


def _granularity(request: ScoreRequest) -> str:
    return request.granularity or "linear"
