"""What the model loses when a layer's contribution is taken away: no tuning, forward passes only."""

from collections.abc import Sequence
from dataclasses import dataclass

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.batch_groups import per_token
from keylayers.criteria.support.cost import Work
from keylayers.criteria.support.removing import Replace, costs_without
from keylayers.criteria.support.spans import enough_layers, shares_above, split_windows
from keylayers.layers.layer import Layer
from keylayers.scores.scores import LayerScores
from keylayers.settings import Count, Seed


@dataclass(frozen=True)
class Ablation(CriterionSettings):
    """Settings of `ablation`."""

    replace: Replace = "zero"
    """What stands in for a layer's contribution: nothing, its mean over the tokens of the data, or that of another
    record of the batch. A block's contribution is its output minus its input, so that zero makes it the identity."""
    window: Count = 1
    """Layers of one kind in consecutive blocks that go together, the scored one in the middle."""
    seed: Seed = 0
    """Of who gives to whom under `resample`."""


def _work(layers: Sequence[Layer], settings: Ablation, batches: int) -> Work:
    sets = list(dict.fromkeys(split_windows(layers, settings.window)))
    blocks = max((layer.block + 1 for layer in layers if layer.block is not None), default=0)
    above = shares_above(layers, sets)
    free = sum(len(places) / blocks for places in sets if layers[places[0]].kind == "block")
    again = settings.replace == "resample"  # every set is seen once more as it is
    passes = len(sets) * (1 + again)
    once = batches * (2 if settings.replace == "mean" else 1)
    return Work(once, 0, partial=batches * passes, share=(sum(above) * (1 + again) - free) / max(passes, 1))


@criterion("model", "data", settings=Ablation, work=_work, fits=enough_layers, optional=["measure"])
def score_ablation(evidence: Evidence, layers: Sequence[Layer], settings: Ablation) -> LayerScores:
    """Cost of the model without a layer minus its cost with it; the loss in nats per token; below 0 where it harms.

    The cost is the evidence's measure (error rates, in [-1, 1] as a score), else its loss. Zero ablation of a block is
    that of Nepal et al. 2025 (weights and biases of its projections set to 0, which makes the block the identity),
    where the score is the accuracy lost. Blocks below the layer are computed once per batch, and a removed block costs
    nothing: for L blocks L (L + 1) / 2 blocks and L + 1 heads per batch, instead of L (L + 1) blocks. Memory: the
    outputs of all blocks for one batch. A measure that generates computes every token anew.

    Raises:
        UnknownName: for another way of replacing. BadInput: for a block whose output has another shape than its input.
        Diverged: if a cost is not finite.
    """
    # deviates: the paper samples whole answers and reports accuracy; here the default is the loss per token by teacher
    # forcing, because a difference of accuracies over 50 sampled answers has a standard error of 7 points or more.
    places = split_windows(layers, settings.window)
    sets = list(dict.fromkeys(places))
    whole, without, terms = costs_without(
        evidence, [[layers[place] for place in one] for one in sets], settings.replace, settings.seed
    )
    values, repeats = per_token(without - whole[:, None], terms)
    of_layer = [sets.index(one) for one in places]
    cost = float(whole.sum() / sum(terms))
    measure = evidence.measure.name if evidence.measure is not None else "loss"
    return scored(
        evidence,
        layers,
        values[of_layer],
        criterion="ablation",
        settings=settings,
        repeats=None if repeats is None else repeats[:, of_layer],
        measure=measure,
        cost=cost,
    )
