"""Size of the change of each layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import nothing
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.structure import parameters_of
from keylayers.scores.scores import LayerScores

Relative = Literal["none", "weight", "size"]


@dataclass(frozen=True)
class DeltaNorm(CriterionSettings):
    """Settings of `delta_norm`."""

    relative: Relative = "none"
    """Divide by nothing, by the norm of the base weights, or by the square root of the number of scalars."""


@criterion("model", "deltas", settings=DeltaNorm, work=nothing)
def score_delta_norm(evidence: Evidence, layers: Sequence[Layer], settings: DeltaNorm) -> LayerScores:
    """Frobenius norm of each layer's change, at least 0; no forward pass. Dense deltas stream one tensor at a time.

    Raises:
        UnknownName: for another way of being relative.
        BadInput: if the norm of quantised weights is asked for.
    """
    assert evidence.model is not None and evidence.deltas is not None
    values = evidence.deltas.norms()
    if settings.relative == "weight":
        parameters = parameters_of(evidence.model)
        values = values / torch.tensor([_norm(parameters, layer) for layer in layers], dtype=torch.float64).clamp_min(
            1e-12
        )
    elif settings.relative == "size":
        values = values / torch.tensor([layer.size for layer in layers], dtype=torch.float64).sqrt()
    return scored(evidence, layers, values, criterion="delta_norm", settings=settings)


def _norm(parameters: Mapping[str, Tensor], layer: Layer) -> float:
    """Frobenius norm of a layer's parameters; `name[3]` is slice 3 of a fused one."""
    total = 0.0
    for name in layer.parameters:
        whole, bracket, index = name.partition("[")
        weight = parameters[whole].detach()
        if not weight.is_floating_point():
            raise BadInput(
                f"{whole} is stored quantised; load the model without quantisation, or give `settings.relative=size`."
            )
        total += float((weight[int(index.removesuffix("]"))] if bracket else weight).double().pow(2).sum())
    return total**0.5
