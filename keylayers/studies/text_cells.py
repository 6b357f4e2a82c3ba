"""What the cells of a study compute: learn deltas, score them, keep only some, train only some; one process each."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from keylayers import criteria
from keylayers.criteria.protocol import Evidence
from keylayers.data.batches import Collated, batches
from keylayers.errors import BadInput, BadScores, Diverged
from keylayers.files.atomic import make_folder
from keylayers.inputs.reachable import within_reach
from keylayers.layers.adapter_undo import restored
from keylayers.layers.gating import gated
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.tensors import tensors_in_memory
from keylayers.measures.accuracy import greedy_matches
from keylayers.recipes.score_request import settings_of
from keylayers.runs import digest, versions
from keylayers.runs.quiet import quiet_libraries
from keylayers.scores import LayerScores, Provenance, Selection, select
from keylayers.scores.files import load, save
from keylayers.scores.spreading import spread
from keylayers.studies.text_task import LoadedTask, load_task
from keylayers.training.adapters import LoraSettings, attach_lora
from keylayers.training.memory import peak_bytes, reset_peak
from keylayers.training.nf4 import through_nf4
from keylayers.training.stage_one import ADAPTER, learn_deltas
from keylayers.training.states import forget
from keylayers.training.trainer import train
from keylayers.training.turns import by_turns


def compute(folder: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """One cell: `do` says which of the functions below, the other fields are its arguments."""
    quiet_libraries()
    place = load_task(fields["task"])
    given = {key: value for key, value in fields.items() if key not in ("do", "task")}
    return DO[fields["do"]](place, Path(folder), **given)


def before(place: LoadedTask, folder: Path, *, answers: bool = False) -> dict[str, Any]:
    """The losses of the model as it is; with `answers` also the share of test records it answers exactly."""
    model = place.loaded.model
    return {**place.losses(model), **({"exact": fmean(greedy_matches(model, place.data.test))} if answers else {})}


def names(place: LoadedTask, folder: Path) -> dict[str, Any]:
    """The layers that are candidates, in forward order."""
    return {"names": [layer.name for layer in place.layers]}


def stage_one(
    place: LoadedTask, folder: Path, *, seed: int, lr: float, share: float = 1.0, short: bool = False
) -> dict[str, Any]:
    """LoRA on all layers for a share of the steps; the adapter stays in the folder.

    The schedule is that of the whole training, cut off: a partial stage 1 is one that was stopped. `short`: a training
    of so many steps with a schedule of its own, which comes to rest.
    """
    task = place.task
    name = f"{task.name}-{digest(task.fields())[:8]}-seed{seed}-{lr:g}-{share:g}{'-short' if short else ''}"
    own = folder / "stage1" / name
    steps = max(1, round(share * task.training.steps))
    settings = replace(task.training, seed=seed, learning_rate=lr)
    _, log = learn_deltas(
        place.loaded.model,
        place.layers,
        place.data.train,
        lora=task.lora,
        settings=replace(settings, steps=steps) if short else replace(settings, stop_after=steps),
        folder=own,
    )
    forget(own)
    return {"adapter": str((own / ADAPTER).relative_to(folder)), "seconds": log.seconds, "losses": list(log.losses)}


def score(
    place: LoadedTask,
    folder: Path,
    *,
    criterion: str,
    settings: Mapping[str, Any],
    adapter: str | None,
    records: int | None = None,
    granularity: str | None = None,
    optional: bool = False,
) -> dict[str, Any]:
    """Scores of all layers by a criterion, on the first so many calibration records; the file stays in the folder.

    `granularity`: that the criterion scores at, where it is not that of the candidates; these take the scores of what
    holds them. `optional`: a criterion that cannot score this model says why under `cannot`, and nothing is raised.
    """
    chosen, size = criteria.get(criterion), place.task.training.batch_size
    calibration = place.data.calibration
    if records is not None:
        calibration = calibration.take(range(min(records, len(calibration))))
    try:
        scored = place.layers
        if granularity is not None:
            scored = within_reach(place.loaded.model, named_layers(place.loaded.model, granularity), place.data.train)
    except BadInput as error:
        if not optional:
            raise
        return {"cannot": str(error)}
    evidence = Evidence(
        model=place.loaded.model,
        weights=tensors_in_memory(place.loaded.model, place.loaded.source) if "weights" in chosen.needs else None,
        deltas=None if adapter is None else place.deltas(str(folder / adapter), scored),
        data=batches(calibration, size, shuffle=False),
        training=Collated.of(place.data.train, size),
        granularity=granularity or "linear",
        provenance=Provenance(model=place.loaded.identity(), data=place.data.identity, versions=versions()),
    )
    reset_peak()
    before = peak_bytes()
    try:
        scores = chosen(evidence, scored, settings_of(chosen, settings))
    except (BadInput, BadScores, Diverged) as error:
        if not optional:
            raise
        return {"cannot": str(error)}
    peak = peak_bytes() - before
    if granularity is not None:
        scores = spread(scores, place.layers)
    name = digest([place.task.fields(), criterion, dict(settings), adapter, records, granularity])[:16]
    file = Path("scores") / f"{place.task.name}-{criterion}-{name}.json"
    make_folder(folder / file.parent)
    save(scores, folder / file)
    return {"file": str(file), "seconds": scores.provenance.seconds, "peak": peak}


def keep(place: LoadedTask, folder: Path, *, adapter: str, layers: Sequence[str]) -> dict[str, Any]:
    """The losses with only the selected layers' changes: mask validity."""
    deltas = place.deltas(str(folder / adapter))
    gates = deltas.uniform(0.0)
    for index, layer in enumerate(place.layers):
        gates[index] = float(layer.name in set(layers))
    with gated(place.loaded.model, deltas, gates, 0.0) as model:
        return place.losses(model)


def retrain(
    place: LoadedTask,
    folder: Path,
    *,
    layers: Sequence[str],
    seed: int,
    lr: float,
    nf4: bool = False,
    answers: bool = False,
    rank: int | None = None,
    turns: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The losses after training only the selected layers from the start: retraining validity.

    `nf4`: on the model whose blocks' matrices went through 4-bit storage, as QLoRA trains it. `answers`: also the share
    of test records that greedy decoding answers exactly. `rank`: of the adapters, where not the task's. `turns`: the
    layers train by turns, `{"every": steps, "policy": one with {draw}}`, another number for each turn of each seed. A
    training that diverges gains nothing: its losses are those before it, and `diverged` says why.
    """
    task, model, chosen = place.task, place.loaded.model, place.chosen(layers)
    lora = task.lora if rank is None else LoraSettings(rank, task.lora.alpha * rank / task.lora.rank, task.lora.dropout)
    rounded = through_nf4(model, [layer for layer in place.layers if layer.block is not None]) if nf4 else nullcontext()
    with rounded, restored(model):
        adapted = attach_lora(model, chosen, lora, seed)
        trainable = sum(value.numel() for value in adapted.parameters() if value.requires_grad)
        hook = by_turns(adapted, partial(_turn, chosen, turns["policy"], seed), turns["every"]) if turns else None
        settings = replace(task.training, seed=seed, learning_rate=lr)
        try:
            log = train(adapted, place.data.train, settings, before_step=hook)
        except Diverged as error:
            log, diverged = None, {"diverged": str(error)}
        if log is not None:
            right = {"exact": fmean(greedy_matches(adapted, place.data.test))} if answers else {}
            losses = [round(loss, 5) for loss in log.losses]
            found = {**place.losses(adapted), **right, "seconds": log.seconds, "train_losses": losses}
    if log is None:
        found = {**before(place, folder, answers=answers), "seconds": 0.0, "train_losses": [], **diverged}
    return {**found, "trainable": trainable}


def _turn(layers: Sequence[Layer], policy: str, seed: int, turn: int) -> Selection:
    return select(layers, policy.replace("{draw}", str(1000 * seed + turn)))


DO: dict[str, Callable[..., dict[str, Any]]] = {
    "before": before,
    "names": names,
    "stage_one": stage_one,
    "score": score,
    "keep": keep,
    "retrain": retrain,
}


def scores_in(folder: Path, result: Mapping[str, Any]) -> LayerScores:
    """The scores that a `score` cell stored."""
    return load(folder / result["file"])
