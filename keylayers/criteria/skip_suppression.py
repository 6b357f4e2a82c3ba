"""How sharply success falls when a skip connection is turned down: where a backdoor's shortcut runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import Work
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.prefix import block_outputs
from keylayers.layers.skip_factors import SkipFactors
from keylayers.layers.skips import example_for
from keylayers.layers.suppressed import Suppressed
from keylayers.layers.tensor_swap import frozen
from keylayers.measures.backdoor import misses
from keylayers.measures.objective import Loss, finite, supervised
from keylayers.scores.scores import LayerScores
from keylayers.settings import Share

Calibration = Literal["clean-only", "own-trigger", "oracle"]
Success = Literal["share", "likelihood"]
STEPS = 10
"""From the whole skip to none of it."""


@dataclass(frozen=True)
class SkipSuppression(CriterionSettings):
    """Settings of `skip_suppression`."""

    calibration: Calibration = "clean-only"
    """What the data is, for the record: clean; with a trigger of the defender's own, in a copy of the model that he
    planted it in; or with the attacker's (`oracle`), which no defender has."""
    success: Success = "share"
    """Of records answered exactly as labelled, or the geometric mean of the labels' probabilities, exp(-loss)."""
    least: Share = 0.5
    """Success of a trigger in the whole model below which nothing is scored; not asked of clean data."""


def _work(layers: Sequence[Layer], settings: SkipSuppression, batches: int) -> Work:
    blocks = max((layer.block + 1 for layer in layers if layer.block is not None), default=0)
    above = [(blocks - (layer.block or 0)) / blocks if blocks else 1.0 for layer in layers]
    return Work(batches, 0, partial=batches * STEPS * len(layers), share=sum(above) / max(len(layers), 1))


@criterion("model", "data", settings=SkipSuppression, work=_work, granularities=["skip"])
def score_skip_suppression(evidence: Evidence, layers: Sequence[Layer], settings: SkipSuppression) -> LayerScores:
    """Steepest fall of attack success as a skip is turned down from 1 to 0, weighted towards falls that end low; at
    most 1, below 0 where success only rises.

    A skip at gamma makes f(x) + gamma x. s = max over gamma = 0.9, ..., 0 of (A(gamma + 0.1) - A(gamma)) /
    exp(A(gamma)), where A is the share of records answered as labelled: **a fraction, not percent** (Shortcut
    suppression, Yang et al. 2023, arXiv:2211.05631). The data bears the trigger and, as labels, the target; who made
    the trigger is not seen here, only noted. On clean data with its true labels (`clean-only`, ours) A is the clean
    accuracy: which skip answers lean on, a guess at where a backdoor could. A(gamma) of every skip is in the provenance
    as `curves`.

    What comes before the addition is computed once for the ten gammas, and gamma = 1 once for all skips. Memory: the
    outputs of all blocks for one batch, and one block's activations. No interval: the largest of ten falls in a part of
    the data is not an estimate of the largest in all.

    Raises:
        UnknownName: for a layer that is no skip. BadInput: for a network without a
        skip, labels out of range, or a trigger that does not work. Diverged: if a loss is not finite.
    """
    # deviates: the released code's first step of a skip compares with the last of the skip before; here with A(1).
    assert evidence.model is not None and evidence.data is not None
    costs, terms = _costs(evidence, layers, misses if settings.success == "share" else evidence.loss)
    mean = costs.sum(0) / supervised(sum(terms))
    curves = 1 - mean if settings.success == "share" else np.exp(-mean)
    if settings.calibration != "clean-only" and len(layers) and curves[0, 0] < settings.least:
        raise BadInput(
            f"the trigger of calibration {settings.calibration} succeeds with {curves[0, 0]:.1%} in the whole model; "
            f"at least {settings.least:.0%} is needed, or no skip can be blamed. The data's labels must be the target, "
            "and the model one in which that trigger was planted."
        )
    noted = {
        layer.name: [round(float(value), 6) for value in curve] for layer, curve in zip(layers, curves, strict=True)
    }
    oracle = settings.calibration == "oracle"
    return scored(
        evidence, layers, steepest(curves), criterion="skip_suppression", settings=settings, oracle=oracle, curves=noted
    )


def steepest(curves: Float[np.ndarray, "layers gammas"]) -> Float[np.ndarray, " layers"]:
    """The published score of success at falling gammas, each curve by itself; success as a fraction."""
    return ((curves[:, :-1] - curves[:, 1:]) / np.exp(curves[:, 1:])).max(1)


def _costs(
    evidence: Evidence, layers: Sequence[Layer], cost: Loss
) -> tuple[Float[np.ndarray, "batches layers gammas"], list[int]]:
    """Summed cost of each batch with each skip at 1, 0.9, ..., 0, and the terms of each batch."""
    assert evidence.model is not None and evidence.data is not None
    model, batches = evidence.model, len(evidence.data)
    if isinstance(model, Suppressed):
        raise BadInput(
            f"{', '.join(model.factors)} of this network are turned down already, and what a skip carries is seen in "
            "the whole one",
            "score the network as it was before",
            "name the next skip to turn down (`skip`)",
        )
    given = {key: value for key, value in evidence.data[0].items() if isinstance(value, Tensor) and key != "labels"}
    example = example_for(model, given)
    costs, terms = np.zeros((batches, len(layers), STEPS + 1)), [0] * batches
    with frozen(model), torch.no_grad():
        for row, batch in enumerate(evidence.data):
            with block_outputs(model, calls=False) as outputs:
                value, terms[row] = cost(model, batch)
            costs[row, :, 0] = finite(float(value), f"the cost of batch {row}")
            for column, layer in enumerate(layers):
                factors = SkipFactors(model, layer, outputs, example)
                for step in range(1, STEPS + 1):
                    with factors.at((STEPS - step) / STEPS):
                        value, _ = cost(model, batch)
                    where = f"batch {row} with {layer.name} at {(STEPS - step) / STEPS}"
                    costs[row, column, step] = finite(float(value), f"the cost of {where}")
                if evidence.progress:
                    evidence.progress(row * len(layers) + column + 1, batches * len(layers), 0.0)
    return costs, terms
