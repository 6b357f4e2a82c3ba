"""The loss drop of tuning, attributed to layers by integrating the gate gradient from the base to the tuned model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from keylayers.criteria.criterion import Evidence, criterion, scored
from keylayers.criteria.evaluation import per_token
from keylayers.layers.gating import frozen, gate_gradients, gated
from keylayers.layers.layer import Layer
from keylayers.measures.objective import finite
from keylayers.scores.scores import LayerScores


@dataclass(frozen=True)
class PathIntegral:
    """Settings of `path_integral`."""

    points: int = 8
    """Gauss-Legendre nodes on the path; 1 is the midpoint gradient, one backward pass over the data."""


@criterion("model", "deltas", "data", settings=PathIntegral)
def path_integral(evidence: Evidence, layers: Sequence[Layer], settings: PathIntegral) -> LayerScores:
    """Loss drop that each layer's change brings, in nats per token; negative where the change hurts.

    score_l = -integral_0^1 dL/dgate_l at theta_0 + t * delta dt, by Gauss-Legendre quadrature (integrated gradients,
    Sundararajan et al. 2017, Eq. 1, on the path base -> tuned with one variable per layer). The scores and the share of
    parameters outside the layers (`remainder`) sum to the real drop; how nearly is noted as `completeness_error`.
    Cost: `points` forward and backward passes over the data. Dense deltas stream (see `gate_gradients`).
    """
    assert evidence.model is not None and evidence.deltas is not None and evidence.data is not None
    model, deltas, batches = evidence.model, evidence.deltas, evidence.data
    nodes, weights = np.polynomial.legendre.leggauss(settings.points)
    sums = np.zeros((len(batches), len(layers) + 1))
    ends, terms = np.zeros((len(batches), 2)), [0] * len(batches)
    done, total = 0, settings.points * len(batches)
    with frozen(model):
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            for index, batch in enumerate(batches):

                def run_backward(batch=batch, index=index) -> None:  # noqa: ANN001
                    value, terms[index] = evidence.loss(model, batch)
                    finite(float(value.detach()), f"the loss of batch {index} at gate {node:.3f}")
                    value.backward()

                gradient, rest = gate_gradients(model, deltas, node, run_backward)
                sums[index] -= weight * np.append(gradient.numpy(), rest)
                done += 1
                if evidence.progress:
                    evidence.progress(done, total, 0.0)
        for column, gate in enumerate((0.0, 1.0)):
            with torch.no_grad(), gated(model, deltas, deltas.uniform(gate), gate):
                for index, batch in enumerate(batches):
                    ends[index, column] = float(evidence.loss(model, batch)[0].detach())
    values, repeats = per_token(sums, terms)
    before, after = ends.sum(0) / sum(terms)
    drop = before - after
    error = abs(values.sum() - drop) / max(abs(drop), 1e-12)
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
        completeness_error=error,
    )
