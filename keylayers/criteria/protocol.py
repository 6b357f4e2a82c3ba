"""What a criterion is: a function (evidence, layers, settings) -> LayerScores that says what it needs to look at."""

import inspect
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from keylayers.criteria import PREFIX
from keylayers.criteria.support.cost import Counting
from keylayers.errors import BadInput
from keylayers.layers.deltas import Deltas, deltas_from_checkpoints
from keylayers.layers.layer import Layer
from keylayers.layers.tensors import TensorSource
from keylayers.measures.attacks import image_key
from keylayers.measures.features import classes_of
from keylayers.measures.measure import Measure
from keylayers.measures.objective import Batch, Loss, language_loss, model_device
from keylayers.scores.checks import checked_layers
from keylayers.scores.provenance import Provenance
from keylayers.scores.scores import LayerScores
from keylayers.settings import Settings


@dataclass(frozen=True)
class CriterionSettings(Settings):
    """A base of the settings of criteria: each field is checked as it is made, and named with its criterion."""

    def spelled(self, name: str, value: object = None) -> str:
        """What a message calls a setting that was given that value; without one, what its values are called."""
        of = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        return f"{of} {name}" if value is None else f"`settings.{name}={value}` of {of}"


Fitting = Callable[[Sequence[Layer], Any, int], None]
"""(layers, settings, number of batches) -> nothing. Raises BadInput where settings that are right in themselves do not
go with so many layers or batches: asked before anything trains."""

NEEDS = {
    "model": "a model to run (`model`)",
    "weights": "a safetensors checkpoint (`model`)",
    "deltas": "what tuning changed: a LoRA run or a tuned checkpoint (`tuned`), or data to train one on (`data`)",
    "sibling": "a second model of the same family (`sibling`)",
    "data": "data to score on (`data`)",
    "measure": "a measure of the model (`measure`)",
}


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at; absent parts are None."""

    model: nn.Module | None = None
    """The base model, theta_0."""
    weights: TensorSource | None = None
    deltas: Deltas | None = None
    sibling: nn.Module | None = None
    """A second model of the same family; without deltas, a tuned version of the model, from which they are made."""
    data: Sequence[Batch] | None = None
    """Collated batches of calibration records, disjoint from what the deltas were trained on and from the test."""
    training: Sequence[Batch] | None = None
    """Batches of the records that the deltas were trained on; what chooses layers by them saw them fitted already."""
    measure: Measure | None = None
    """A cost to compare instead of the loss; None: the loss."""
    loss: Loss = language_loss
    granularity: str = "linear"
    """At which the layers were listed."""
    provenance: Provenance = field(default_factory=Provenance)
    """Model and data identities, copied into the scores."""
    checkpoint: Callable[[str], Any] | None = None
    """Name of a loop -> where it keeps its state (`RunFolder.checkpoint`); None: nothing is kept."""
    progress: Callable[[int, int, float], None] | None = None
    """Called with (steps done, steps in all, loss) as work goes on; loss 0 by criteria that learn nothing."""


@dataclass(frozen=True)
class Criterion:
    """A named way of scoring; call it with evidence, layers and optionally settings."""

    name: str
    compute: Callable[..., LayerScores]
    needs: frozenset[str]
    settings: type[CriterionSettings]
    summary: str
    work: Counting | None = None
    """How much it computes, for forecasts; None where it does not say."""
    optional: frozenset[str] = frozenset()
    """Parts of the evidence that it looks at where they are given."""
    granularities: tuple[str, ...] = ()
    """What it can score; empty: anything."""
    images: bool = False
    """Whether it takes images alone."""
    labelled: bool = False
    """Whether it must know a class of every record."""
    fits: Fitting | None = None
    """What it asks of the number of layers and batches; None: nothing."""

    def __call__(self, evidence: Evidence, layers: Sequence[Layer], settings: Any = None) -> LayerScores:
        """The scores of the layers; the model is left exactly as it was found.

        Raises:
            BadInput: if evidence is missing, is about other layers than those asked for, or the settings are another's.
        """
        settings = self.settings() if settings is None else settings
        if not isinstance(settings, self.settings):
            raise BadInput(
                f"criterion {self.name!r} takes {self.settings.__name__} as settings, got {type(settings).__name__}."
            )
        layers = checked_layers(layers, BadInput)
        base, tuned = evidence.model, evidence.sibling
        if "deltas" in self.needs and evidence.deltas is None and base is not None and tuned is not None:
            evidence = replace(evidence, deltas=deltas_from_checkpoints(base, tuned, layers))
        self._check(evidence, layers)
        self.check_fit(layers, settings, len(evidence.data or ()))
        start = time.perf_counter()
        scores = self.compute(evidence, layers, settings)
        spent = time.perf_counter() - start
        return replace(scores, provenance=replace(scores.provenance, seconds=round(spent, 3)))

    def check_fit(self, layers: Sequence[Layer], settings: Any, batches: int) -> None:
        """Raises BadInput where the settings do not go with the layers, or with so many batches."""
        if self.fits is not None:
            self.fits(layers, settings, batches)

    def _check(self, evidence: Evidence, layers: tuple[Layer, ...]) -> None:
        bare = next((layer for layer in layers if not layer.parameters), None)
        if bare is not None and self.needs and "skip" not in self.granularities:
            raise BadInput(
                f"criterion {self.name!r} looks at weights or at what modules compute, but {bare.name} is a skip "
                "connection, which has neither; choose another granularity."
            )
        missing = [need for need in NEEDS if need in self.needs and getattr(evidence, need) is None]
        if missing:
            raise BadInput(f"criterion {self.name!r} needs {' and '.join(NEEDS[need] for need in missing)}.")
        if "data" in self.needs and evidence.data is not None and len(evidence.data) == 0:
            raise BadInput(f"criterion {self.name!r} got data without a single batch; give calibration records.")
        if self.images and evidence.data is not None:
            image_key(evidence.data[0], f"criterion {self.name!r}")
        if self.labelled and evidence.data is not None:
            classes_of(evidence.data[0])
        if "deltas" in self.needs and evidence.deltas is not None and evidence.deltas.layers != layers:
            raise BadInput(_other_layers(self.name, layers, evidence.deltas.layers))


def _other_layers(criterion: str, asked: Sequence[Layer], held: Sequence[Layer]) -> str:
    """How the layers of the deltas differ from those asked for."""
    names, others = [layer.name for layer in asked], [layer.name for layer in held]
    differing = [name for name in names if name not in others] + [name for name in others if name not in names]
    how = f"differing in {', '.join(differing[:3])}" if differing else "in another order or with other parameters"
    return (
        f"criterion {criterion!r} is asked for {len(names)} layers, but the deltas are of {len(others)}, {how}; "
        "make the deltas with the same list of layers (same model, same granularity)."
    )


def criterion(
    *needs: str,
    settings: type[CriterionSettings],
    work: Counting | None = None,
    optional: Sequence[str] = (),
    granularities: Sequence[str] = (),
    images: bool = False,
    labelled: bool = False,
    fits: Fitting | None = None,
) -> Callable[[Callable[..., LayerScores]], Criterion]:
    """Declares a function `score_NAME` as the criterion NAME: what it needs, its settings class, its work, what alone
    it can score, whether it takes images alone, whether it must know a class of every record, and what it asks of the
    number of layers and batches."""
    unknown = {*needs, *optional} - NEEDS.keys()
    assert not unknown, unknown

    def declare(compute: Callable[..., LayerScores]) -> Criterion:
        summary = (inspect.getdoc(compute) or "").split("\n")[0]
        who = (
            compute.__name__.removeprefix(PREFIX),
            compute,
            frozenset(needs),
            settings,
            summary,
            work,
            frozenset(optional),
        )
        return Criterion(*who, tuple(granularities), images, labelled, fits)

    return declare


def scored(
    evidence: Evidence,
    layers: Sequence[Layer],
    values: Any,
    *,
    criterion: str,
    settings: Any,
    repeats: Any = None,
    **extra: Any,
) -> LayerScores:
    """The values as LayerScores with the evidence's provenance and the settings; `extra` joins the settings."""
    noted = {**asdict(settings), **extra}
    if evidence.deltas is not None:
        noted["deltas"] = evidence.deltas.source
        if evidence.deltas.notes:
            noted["compared"] = list(evidence.deltas.notes)
    device = "cpu" if evidence.model is None else str(model_device(evidence.model))
    return LayerScores(
        tuple(layers),
        _numpy(values),
        criterion,
        evidence.granularity,
        replace(evidence.provenance, settings=noted, seed=noted.get("seed"), device=device),
        repeats=None if repeats is None else _numpy(repeats),
    )


def _numpy(values: Any) -> Any:
    return values.detach().double().cpu().numpy() if isinstance(values, torch.Tensor) else values
