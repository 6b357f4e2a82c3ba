"""Loss drop when the base model gets one layer's change alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.batch_groups import per_token
from keylayers.criteria.support.cost import one_at_a_time
from keylayers.criteria.support.one_at_a_time import losses_one_at_a_time
from keylayers.layers.layer import Layer
from keylayers.scores.scores import LayerScores


@dataclass(frozen=True)
class AddOneIn(CriterionSettings):
    """`add_one_in` has no settings."""


@criterion("model", "deltas", "data", settings=AddOneIn, work=one_at_a_time)
def score_add_one_in(evidence: Evidence, layers: Sequence[Layer], settings: AddOneIn) -> LayerScores:
    """Loss of the base model minus its loss with one layer's change, in nats per token; negative where it hurts alone.

    Cost: one forward pass per layer over the data, from the layer's block upward.
    """
    base, changed, terms = losses_one_at_a_time(evidence, layers, others=0.0)
    values, repeats = per_token(base[:, None] - changed, terms)
    loss = float(base.sum() / sum(terms))
    return scored(evidence, layers, values, criterion="add_one_in", settings=settings, repeats=repeats, loss_base=loss)
