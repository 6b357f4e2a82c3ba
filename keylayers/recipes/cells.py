"""What the cells of a study compute: learn deltas, score them, keep only some, train only some; one process each."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from keylayers import criteria
from keylayers.criteria.criterion import Evidence
from keylayers.data.batches import batches
from keylayers.layers.deltas import Deltas
from keylayers.layers.gating import gated
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.restoring import restored
from keylayers.measures.accuracy import greedy_matches
from keylayers.measures.loss import example_losses
from keylayers.models import deltas_of
from keylayers.models.loading import LoadedModel
from keylayers.recipes.inputs import Inputs, Prepared, prepare_data
from keylayers.recipes.score import settings_of
from keylayers.runs import digest, versions
from keylayers.runs.quiet import quiet_libraries
from keylayers.scores import LayerScores, Provenance
from keylayers.scores.files import load, save
from keylayers.training.adapters import LoraSettings, attach_lora
from keylayers.training.nf4 import through_nf4
from keylayers.training.stage_one import ADAPTER, learn_deltas
from keylayers.training.states import forget
from keylayers.training.train import TrainSettings, train


@dataclass(frozen=True)
class Task:
    """A model, a data set, and how LoRA is trained on it: what every arm of a study shares."""

    name: str
    inputs: Inputs
    training: TrainSettings
    lora: LoraSettings = field(default_factory=LoraSettings)
    control: str | None = None
    """Data that has nothing to do with the task: its loss tells what is forgotten."""

    def fields(self) -> dict[str, Any]:
        """As plain JSON, for a cell."""
        return asdict(self)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Task":
        """Back from plain JSON."""
        return cls(
            fields["name"],
            Inputs(**fields["inputs"]),
            TrainSettings(**fields["training"]),
            LoraSettings(**fields["lora"]),
            fields["control"],
        )


@dataclass(frozen=True)
class Bench:
    """A task made ready in this process: the model is left as it was by every cell."""

    task: Task
    loaded: LoadedModel
    layers: tuple[Layer, ...]
    data: Prepared
    control: Prepared | None

    def chosen(self, names: Sequence[str]) -> list[Layer]:
        """The layers of those names, in forward order."""
        wanted = set(names)
        return [layer for layer in self.layers if layer.name in wanted]

    def deltas(self, folder: str) -> Deltas:
        """What a training stored there changed."""
        return deltas_of(self.loaded.model, folder, self.layers)

    def losses(self, model: Any) -> dict[str, Any]:
        """Loss on the calibration, test and control records, nats per token."""
        found = {
            "calibration": example_losses(model, self.data.calibration).mean,
            "test": example_losses(model, self.data.test).mean,
        }
        if self.control is not None:
            found["control"] = example_losses(model, self.control.test).mean
        return found


def bench(fields: Mapping[str, Any]) -> Bench:
    """The task of a cell, loaded once per process."""
    return _bench(_Hashed(Task.of(fields)))


def compute(folder: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """One cell: `do` says which of the functions below, the other fields are its arguments."""
    quiet_libraries()
    place = bench(fields["task"])
    given = {key: value for key, value in fields.items() if key not in ("do", "task")}
    return DO[fields["do"]](place, Path(folder), **given)


def before(place: Bench, folder: Path, *, answers: bool = False) -> dict[str, Any]:
    """The losses of the model as it is; with `answers` also the share of test records it answers exactly."""
    model = place.loaded.model
    return {**place.losses(model), **({"exact": fmean(greedy_matches(model, place.data.test))} if answers else {})}


def names(place: Bench, folder: Path) -> dict[str, Any]:
    """The layers that are candidates, in forward order."""
    return {"names": [layer.name for layer in place.layers]}


def stage_one(place: Bench, folder: Path, *, seed: int, lr: float, share: float = 1.0) -> dict[str, Any]:
    """LoRA on all layers for a share of the steps; the adapter stays in the folder.

    The schedule is that of the whole training, cut off: a partial stage 1 is one that was stopped.
    """
    task = place.task
    own = folder / "stage1" / f"{task.name}-{digest(task.fields())[:8]}-seed{seed}-{lr:g}-{share:g}"
    steps = max(1, round(share * task.training.steps))
    _, log = learn_deltas(
        place.loaded.model,
        place.layers,
        place.data.train,
        lora=task.lora,
        settings=replace(task.training, seed=seed, learning_rate=lr, stop_after=steps),
        folder=own,
    )
    forget(own)
    return {"adapter": str((own / ADAPTER).relative_to(folder)), "seconds": log.seconds, "losses": list(log.losses)}


def score(
    place: Bench,
    folder: Path,
    *,
    criterion: str,
    settings: Mapping[str, Any],
    adapter: str | None,
    records: int | None = None,
) -> dict[str, Any]:
    """Scores of all layers by a criterion, on the first so many calibration records; the file stays in the folder."""
    chosen, size = criteria.get(criterion), place.task.training.batch_size
    calibration = (
        place.data.calibration.take(range(min(records, len(place.data.calibration))))
        if records
        else place.data.calibration
    )
    deltas = None if adapter is None else place.deltas(str(folder / adapter))
    scores = chosen(
        Evidence(
            model=place.loaded.model,
            deltas=deltas,
            data=batches(calibration, size, shuffle=False),
            provenance=Provenance(model=place.loaded.identity(), data=place.data.identity, versions=versions()),
        ),
        place.layers,
        settings_of(chosen, settings),
    )
    name = digest([place.task.fields(), criterion, dict(settings), adapter, records])[:16]
    file = Path("scores") / f"{place.task.name}-{criterion}-{name}.json"
    (folder / file.parent).mkdir(exist_ok=True)
    save(scores, folder / file)
    return {"file": str(file), "seconds": scores.provenance.seconds}


def keep(place: Bench, folder: Path, *, adapter: str, layers: Sequence[str]) -> dict[str, Any]:
    """The losses with only the selected layers' changes: mask validity."""
    deltas = place.deltas(str(folder / adapter))
    gates = deltas.uniform(0.0)
    for index, layer in enumerate(place.layers):
        gates[index] = float(layer.name in set(layers))
    with gated(place.loaded.model, deltas, gates, 0.0) as model:
        return place.losses(model)


def retrain(
    place: Bench, folder: Path, *, layers: Sequence[str], seed: int, lr: float, nf4: bool = False, answers: bool = False
) -> dict[str, Any]:
    """The losses after training only the selected layers from the start: retraining validity.

    `nf4`: on the model whose blocks' matrices went through 4-bit storage, as QLoRA trains it. `answers`: also the share
    of test records that greedy decoding answers exactly.
    """
    task, model = place.task, place.loaded.model
    rounded = through_nf4(model, [layer for layer in place.layers if layer.block is not None]) if nf4 else nullcontext()
    with rounded, restored(model):
        adapted = attach_lora(model, place.chosen(layers), task.lora, seed)
        trainable = sum(value.numel() for value in adapted.parameters() if value.requires_grad)
        log = train(adapted, place.data.train, replace(task.training, seed=seed, learning_rate=lr))
        right = {"exact": fmean(greedy_matches(adapted, place.data.test))} if answers else {}
        return {
            **place.losses(adapted),
            **right,
            "trainable": trainable,
            "seconds": log.seconds,
            "train_losses": [round(loss, 5) for loss in log.losses],
        }


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


@dataclass(frozen=True)
class _Hashed:
    """A task as a key: its settings hold a mapping, which has no hash."""

    task: Task

    def __hash__(self) -> int:
        return hash(digest(self.task.fields()))


@lru_cache(maxsize=2)
def _bench(key: _Hashed) -> Bench:
    task = key.task
    loaded = task.inputs.load_model()
    control = None
    if task.control is not None:
        control = prepare_data(replace(task.inputs, data=task.control, records=1), loaded)
    return Bench(task, loaded, named_layers(loaded.model, "linear"), prepare_data(task.inputs, loaded), control)
