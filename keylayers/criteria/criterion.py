"""What a criterion is: a function (evidence, layers, settings) -> LayerScores that says what it needs to look at."""

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from keylayers.errors import BadInput
from keylayers.layers.deltas import Deltas
from keylayers.layers.layer import Layer
from keylayers.layers.tensors import TensorSource
from keylayers.measures.objective import Batch, Loss, language_loss
from keylayers.scores.provenance import Provenance
from keylayers.scores.scores import LayerScores

NEEDS = {
    "model": "a model to run (--model)",
    "weights": "a safetensors checkpoint (--model FOLDER)",
    "deltas": "what tuning changed: a LoRA run or a tuned checkpoint (--tuned), or data to train one on (--data)",
    "sibling": "a second model of the same family (--sibling)",
    "data": "data to score on (--data)",
    "measure": "a measure of the model (--measure)",
}


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at; absent parts are None."""

    model: nn.Module | None = None
    """The base model, theta_0."""
    weights: TensorSource | None = None
    deltas: Deltas | None = None
    sibling: nn.Module | None = None
    data: Sequence[Batch] | None = None
    """Collated batches of calibration records, disjoint from what the deltas were trained on and from the test."""
    measure: Callable[[nn.Module], float] | None = None
    loss: Loss = language_loss
    granularity: str = "linear"
    """At which the layers were listed."""
    provenance: Provenance = field(default_factory=Provenance)
    """Model and data identities, copied into the scores."""
    checkpoint: Callable[[str], Any] | None = None
    """Name of a loop -> where it keeps its state (`RunFolder.checkpoint`); None: nothing is kept."""
    progress: Callable[[int, int, float], None] | None = None
    """Called with (step, steps, loss) by criteria that learn."""


@dataclass(frozen=True)
class Criterion:
    """A named way of scoring; call it with evidence, layers and optionally settings."""

    name: str
    compute: Callable[..., LayerScores]
    needs: frozenset[str]
    settings: type
    summary: str

    def __call__(self, evidence: Evidence, layers: Sequence[Layer], settings: Any = None) -> LayerScores:
        missing = sorted(need for need in self.needs if getattr(evidence, need) is None)
        if missing:
            raise BadInput(f"criterion {self.name!r} needs {' and '.join(NEEDS[need] for need in missing)}.")
        settings = self.settings() if settings is None else settings
        start = time.perf_counter()
        scores = self.compute(evidence, tuple(layers), settings)
        spent = time.perf_counter() - start
        return replace(scores, provenance=replace(scores.provenance, seconds=round(spent, 3)))


def criterion(*needs: str, settings: type) -> Callable[[Callable[..., LayerScores]], Criterion]:
    """Declares a function as a criterion of its own name, with what it needs and its settings class."""
    unknown = set(needs) - NEEDS.keys()
    assert not unknown, unknown

    def declare(compute: Callable[..., LayerScores]) -> Criterion:
        summary = (inspect.getdoc(compute) or "").split("\n")[0]
        return Criterion(compute.__name__, compute, frozenset(needs), settings, summary)

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
    device = next((str(p.device) for p in evidence.model.parameters()), None) if evidence.model is not None else "cpu"
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
