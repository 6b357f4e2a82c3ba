"""Loss increase when one layer's change is taken back: the direct, slow reference."""

from collections.abc import Sequence
from dataclasses import dataclass

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.batch_groups import per_token
from keylayers.criteria.support.cost import one_at_a_time
from keylayers.criteria.support.one_at_a_time import losses_one_at_a_time
from keylayers.layers.layer import Layer
from keylayers.scores.scores import LayerScores


@dataclass(frozen=True)
class LeaveOneOut(CriterionSettings):
    """`leave_one_out` has no settings."""


@criterion("model", "deltas", "data", settings=LeaveOneOut, work=one_at_a_time)
def score_leave_one_out(evidence: Evidence, layers: Sequence[Layer], settings: LeaveOneOut) -> LayerScores:
    """Loss of the tuned model without one layer's change, minus its loss with all, in nats per token.

    Mask validity in its plainest form. Cost: one forward pass per layer over the data, from the layer's block upward.
    """
    tuned, changed, terms = losses_one_at_a_time(evidence, layers, others=1.0)
    values, repeats = per_token(changed - tuned[:, None], terms)
    loss = float(tuned.sum() / sum(terms))
    return scored(
        evidence, layers, values, criterion="leave_one_out", settings=settings, repeats=repeats, loss_tuned=loss
    )
