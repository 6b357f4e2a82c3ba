"""The loss drop of tuning, attributed to layers by integrating the gate gradient from the base to the tuned model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from jaxtyping import Float

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.batch_groups import per_token
from keylayers.criteria.support.cost import Work
from keylayers.layers.gating import frozen, gate_gradients, gated
from keylayers.layers.layer import Layer
from keylayers.measures.objective import Batch, finite
from keylayers.scores.scores import LayerScores


@dataclass(frozen=True)
class PathIntegral(CriterionSettings):
    """Settings of `path_integral`."""

    points: Annotated[int, Ge(1), Le(1000)] = 8
    """Gauss-Legendre nodes on the path; 1 is the midpoint gradient, one backward pass over the data."""


def _work(layers: Sequence[Layer], settings: PathIntegral, batches: int) -> Work:
    return Work(2 * batches, settings.points * batches)  # the ends of the path are measured too


@criterion("model", "deltas", "data", settings=PathIntegral, work=_work)
def score_path_integral(evidence: Evidence, layers: Sequence[Layer], settings: PathIntegral) -> LayerScores:
    """Loss drop that each layer's change brings, in nats per token; negative where the change hurts.

    score_l = -integral_0^1 dL/dgate_l at theta_0 + t * delta dt, by Gauss-Legendre quadrature (integrated gradients,
    Sundararajan et al. 2017, Eq. 1, on the path base -> tuned with one variable per layer). The scores and the share of
    parameters outside the layers (`remainder`) sum to the real drop; how nearly is noted as `completeness_error`. Where
    a router changes its mind on the way the loss jumps, which no slope shows and no number of points mends.
    Cost: `points` forward and backward passes over the data. Dense deltas stream (see `gate_gradients`).

    Raises:
        Diverged: if a loss or a gradient is not finite; names the gate value, and batch or layer.
    """
    assert evidence.model is not None and evidence.deltas is not None and evidence.data is not None
    with frozen(evidence.model), torch.enable_grad():
        sums, terms = _attributions(evidence, layers, settings.points)
        values, repeats = per_token(sums, terms)
        before, after = (_loss_at(evidence, gate) / sum(terms) for gate in (0.0, 1.0))
    drop = before - after
    return scored(
        evidence,
        layers,
        values[:-1],
        criterion="path_integral",
        settings=settings,
        repeats=None if repeats is None else repeats[:, :-1],
        loss_base=before,
        loss_tuned=after,
        remainder=values[-1],
        completeness_error=abs(values.sum() - drop) / max(abs(drop), 1e-12),
    )


def _attributions(
    evidence: Evidence, layers: Sequence[Layer], points: int
) -> tuple[Float[np.ndarray, "batches layers+1"], list[int]]:
    """Summed loss drop of each batch due to each layer and, last, to the remainder; tokens of each batch."""
    assert evidence.model is not None and evidence.deltas is not None and evidence.data is not None
    nodes, weights = np.polynomial.legendre.leggauss(points)  # on [-1, 1], of total weight 2
    batches, sums = evidence.data, np.zeros((len(evidence.data), len(layers) + 1))
    terms, names = [0] * len(batches), [f"of layer {layer.name}" for layer in layers]
    for point, (node, weight) in enumerate(zip((nodes + 1) / 2, weights / 2, strict=True)):
        for index, batch in enumerate(batches):

            def run_backward(batch: Batch = batch, index: int = index, node: float = node) -> None:
                assert evidence.model is not None
                loss, terms[index] = evidence.loss(evidence.model, batch)
                finite(float(loss.detach()), f"path_integral: the loss of batch {index} at gates of {node:.3f}")
                loss.backward()

            gradients, rest = gate_gradients(evidence.model, evidence.deltas, node, run_backward)
            for name, value in zip((*names, "outside the layers"), (*gradients.tolist(), rest), strict=True):
                finite(value, f"path_integral: the gradient {name} at gates of {node:.3f}")
            sums[index] -= weight * np.append(gradients.numpy(), rest)
            if evidence.progress:
                evidence.progress(point * len(batches) + index + 1, points * len(batches), 0.0)
    return sums, terms


def _loss_at(evidence: Evidence, gate: float) -> float:
    """Summed loss over all batches with every gate, the remainder's included, at one value."""
    assert evidence.model is not None and evidence.deltas is not None and evidence.data is not None
    with torch.no_grad(), gated(evidence.model, evidence.deltas, evidence.deltas.uniform(gate), gate):
        losses = [float(evidence.loss(evidence.model, batch)[0]) for batch in evidence.data]
    return sum(
        finite(loss, f"path_integral: the loss of batch {i} at gates of {gate:g}") for i, loss in enumerate(losses)
    )
