"""Size of the change of each layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from keylayers.criteria.criterion import Evidence, criterion, scored
from keylayers.layers.layer import Layer
from keylayers.layers.structure import parameters_of
from keylayers.scores.scores import LayerScores


@dataclass(frozen=True)
class DeltaNorm:
    """Settings of `delta_norm`."""

    relative: Literal["none", "weight", "size"] = "none"
    """Divide by nothing, by the norm of the base weights, or by the square root of the number of scalars."""


@criterion("model", "deltas", settings=DeltaNorm)
def delta_norm(evidence: Evidence, layers: Sequence[Layer], settings: DeltaNorm) -> LayerScores:
    """Frobenius norm of each layer's change, at least 0; no forward pass. Dense deltas stream one tensor at a time."""
    assert evidence.model is not None and evidence.deltas is not None
    values = evidence.deltas.norms()
    if settings.relative == "weight":
        parameters = parameters_of(evidence.model)
        squares = [sum(float(parameters[name].double().pow(2).sum()) for name in layer.parameters) for layer in layers]
        values = values / torch.tensor(squares, dtype=torch.float64).sqrt().clamp_min(1e-12)
    elif settings.relative == "size":
        values = values / torch.tensor([layer.size for layer in layers], dtype=torch.float64).sqrt()
    return scored(evidence, layers, values, criterion="delta_norm", settings=settings)
