"""Loss increase when a window of tuned layers is put back to the base's: where tuning was needed."""

from collections.abc import Sequence
from dataclasses import dataclass

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.batch_groups import per_token
from keylayers.criteria.support.cost import Work
from keylayers.criteria.support.one_at_a_time import losses_one_at_a_time
from keylayers.criteria.support.spans import enough_layers, shares_above, split_windows
from keylayers.layers.layer import Layer
from keylayers.scores.scores import LayerScores
from keylayers.settings import Count


@dataclass(frozen=True)
class Substitution(CriterionSettings):
    """Settings of `substitution`."""

    window: Count = 1
    """Layers of one kind in consecutive blocks that go back together, the scored one in the middle; 5 blocks in the
    study of data-oblivious critical layers. With 1 it is `leave_one_out`."""


def _work(layers: Sequence[Layer], settings: Substitution, batches: int) -> Work:
    sets = dict.fromkeys(split_windows(layers, settings.window))
    above = sum(shares_above(layers, sets))
    return Work(batches, 0, partial=batches * len(sets), share=above / max(len(sets), 1))


@criterion("model", "deltas", "data", settings=Substitution, work=_work, fits=enough_layers)
def score_substitution(evidence: Evidence, layers: Sequence[Layer], settings: Substitution) -> LayerScores:
    """Loss of the tuned model with the base's weights in a window around a layer, minus its own, in nats per token.

    The ground truth of Liu et al. 2025 (data-oblivious critical layers): L(theta_T with blocks l-2..l+2 of theta_0).
    The deltas say what tuning changed; without them a sibling, the tuned model itself, does. Each distinct window is
    computed once, from its lowest block upward.
    """
    # deviates: the paper reports the loss and leaves out the two layers at each end; here the tuned loss is subtracted,
    # so that 0 means not needed, and windows move inwards at the ends, so that every layer has a score.
    places = split_windows(layers, settings.window)
    sets = list(dict.fromkeys(places))
    tuned, without, terms = losses_one_at_a_time(evidence, layers, others=1.0, together=sets)
    values, repeats = per_token(without - tuned[:, None], terms)
    of_layer = [sets.index(one) for one in places]
    return scored(
        evidence,
        layers,
        values[of_layer],
        criterion="substitution",
        settings=settings,
        repeats=None if repeats is None else repeats[:, of_layer],
        loss_tuned=float(tuned.sum() / sum(terms)),
    )
