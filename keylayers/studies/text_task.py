"""A task of a study, and the task made ready in one process."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from keylayers.inputs.reachable import within_adapters, within_reach
from keylayers.inputs.text import Inputs, Prepared, prepare_data
from keylayers.layers.deltas import Deltas
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.measures.loss import example_losses
from keylayers.models import deltas_of
from keylayers.models.loading import LoadedModel
from keylayers.runs import digest
from keylayers.runs.seals import check_seal
from keylayers.training.adapters import LoraSettings
from keylayers.training.trainer import TrainSettings


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
class LoadedTask:
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

    def deltas(self, folder: str, layers: Sequence[Layer] | None = None) -> Deltas:
        """What a training stored there changed, by layers, the task's own where none are given.

        Raises:
            BadInput: if what is stored there is damaged.
        """
        check_seal(Path(folder), "start this study over with `fresh`")
        return deltas_of(self.loaded.model, folder, self.layers if layers is None else layers)

    def losses(self, model: Any) -> dict[str, Any]:
        """Loss on the calibration, test and control records, nats per token."""
        found = {
            "calibration": example_losses(model, self.data.calibration).mean,
            "test": example_losses(model, self.data.test).mean,
        }
        if self.control is not None:
            found["control"] = example_losses(model, self.control.test).mean
        return found


def load_task(fields: Mapping[str, Any]) -> LoadedTask:
    """The task of a cell, loaded once per process."""
    return _bench(_Hashed(Task.of(fields)))


@dataclass(frozen=True)
class _Hashed:
    """A task as a key: its settings hold a mapping, which has no hash."""

    task: Task

    def __hash__(self) -> int:
        return hash(digest(self.task.fields()))


@lru_cache(maxsize=2)
def _bench(key: _Hashed) -> LoadedTask:
    task = key.task
    loaded = task.inputs.load_model()
    control = None
    if task.control is not None:
        control = prepare_data(replace(task.inputs, data=task.control, records=1), loaded)
    data = prepare_data(task.inputs, loaded)
    layers = within_reach(loaded.model, named_layers(loaded.model, "linear"), data.train)
    return LoadedTask(task, loaded, within_adapters(loaded.model, layers), data, control)
