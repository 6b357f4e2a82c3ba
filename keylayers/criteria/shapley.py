"""The cost of removing all layers, shared among them: each one's mean cost over orders in which they could go."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import Work
from keylayers.criteria.support.removing import removed
from keylayers.criteria.support.spans import shares_above
from keylayers.layers.ablating import ablated
from keylayers.layers.layer import Layer
from keylayers.layers.prefix import BlockOutputs, block_outputs
from keylayers.layers.tensor_swap import frozen
from keylayers.measures.measure import Measure
from keylayers.measures.objective import Batch, finite, supervised
from keylayers.scores.scores import LayerScores
from keylayers.settings import Count, Seed


@dataclass(frozen=True)
class Shapley(CriterionSettings):
    """Settings of `shapley`."""

    permutations: Count = 8
    """Orders of removal, drawn at random. Where all sets of layers are no more than the steps of so many orders, each
    set is computed once instead, and the values are exact."""
    seed: Seed = 0
    """Of the orders."""


def _exact(layers: int, permutations: int) -> bool:
    return layers <= 20 and 2**layers - 1 <= permutations * layers


def _work(layers: Sequence[Layer], settings: Shapley, batches: int) -> Work:
    count, whole_blocks = len(layers), bool(layers) and all(layer.kind == "block" for layer in layers)
    shares = np.array(shares_above(layers, [[place] for place in range(count)]))
    blocks = max((layer.block + 1 for layer in layers if layer.block is not None), default=0)
    if _exact(count, settings.permutations):
        free = 1 / blocks if whole_blocks else 0.0
        above = float((np.sort(shares - free)[::-1] * 2.0 ** np.arange(count)).sum())  # by the highest layer of a set
        return Work(batches, 0, partial=batches * (2**count - 1), share=above / max(2**count - 1, 1))
    if whole_blocks:  # of the blocks above a removed one half are left, over random orders
        own = {layer.block for layer in layers}
        left = [sum(0.5 if b in own else 1.0 for b in range((layer.block or 0) + 1, blocks)) for layer in layers]
        shares = np.array(left) / blocks
    return Work(batches, 0, partial=batches * count * settings.permutations, share=float(shares.mean()))


@criterion("model", "data", settings=Shapley, work=_work, optional=["measure"])
def score_shapley(evidence: Evidence, layers: Sequence[Layer], settings: Shapley) -> LayerScores:
    """Shapley value of each layer for the cost of the model: by loss, in nats per token; negative where it does harm.

    From the whole model the layers are removed one after another (zero ablation, a block becomes the identity), in many
    random orders; a layer's value in an order is what the cost rises when it goes (Castro et al. 2009, with
    the characteristic function -cost). In every order the values sum to the cost without all layers minus that with
    all. Each order is a repeat, so intervals say how sure the sampling is, not the data. Every step reuses the blocks
    below from the step before, so that L blocks take L (L - 1) / 4 blocks per order and batch on average. Memory: the
    outputs of all blocks for one batch, twice; for exact values, once per layer. The cost is the evidence's measure,
    else its loss.

    Raises:
        BadInput: for no permutation, or a block whose output has another shape. Diverged: if a cost is not finite.
    """
    assert evidence.model is not None and evidence.data is not None
    measure = evidence.measure or Measure("loss", by_batch=evidence.loss)
    exact, orders = _exact(len(layers), settings.permutations), list[Int[np.ndarray, " layers"]]()
    if not exact:
        generator = np.random.default_rng(settings.seed)
        orders = [generator.permutation(len(layers)) for _ in range(settings.permutations)]
    sums, whole, terms = np.zeros((max(len(orders), 1), len(layers))), 0.0, 0
    with frozen(evidence.model), torch.no_grad():
        for coalitions, count in _units(evidence, measure, layers, len(orders)):
            whole, terms = whole + coalitions.whole, terms + count
            sums += _shared_exactly(coalitions) if exact else np.stack([_in_turn(coalitions, one) for one in orders])
    supervised(terms)
    by_order = sums / terms
    return scored(
        evidence,
        layers,
        by_order.mean(0),
        criterion="shapley",
        settings=settings,
        repeats=by_order if len(orders) > 1 else None,
        measure=measure.name,
        cost=whole / terms,
        total=float(by_order[0].sum()),
        exact=exact,
    )


class _Coalitions:
    """Costs of one batch, or of a whole model, without sets of layers."""

    def __init__(
        self,
        evidence: Evidence,
        measure: Measure,
        layers: Sequence[Layer],
        batch: Batch | None,
        before: int,
        steps: int,
    ) -> None:
        self.evidence, self.measure, self.layers, self.batch = evidence, measure, layers, batch
        self.before, self.steps, self.done, self.terms = before, steps, 0, 0
        self.outputs: BlockOutputs | None = None
        self.starts = list(range(len(layers)))
        if batch is not None:
            with block_outputs(self.model) as self.outputs:
                self.whole = self._cost("whole")
            self.starts = [self.outputs.start(layer) for layer in layers]
        else:
            self.whole = self._cost("whole")

    @property
    def model(self) -> torch.nn.Module:
        assert self.evidence.model is not None
        return self.evidence.model

    def _cost(self, what: str) -> float:
        if self.batch is not None and self.measure.by_batch is not None:
            value, self.terms = self.measure.by_batch(self.model, self.batch)
        else:
            assert self.measure.by_record is not None
            found = self.measure.by_record(self.model)
            value, self.terms = torch.tensor(np.sum(found)), len(found)
        return finite(float(value), f"the {self.measure.name} of the model, {what}")

    def without(self, gone: Sequence[int], kept: BlockOutputs | None, last: int) -> tuple[float, BlockOutputs | None]:
        """The cost without the layers at those places, and what its blocks returned. `kept` is what they returned
        without all but the `last` of them."""
        members, what = [self.layers[place] for place in gone], f"without {len(gone)} layers"
        self.done += 1
        if self.evidence.progress:
            self.evidence.progress(self.before + self.done, self.steps, 0.0)
        if kept is None:
            with ablated(self.model, members):
                return self._cost(what), None
        with removed(self.model, members, kept, start=self.starts[last]), block_outputs(self.model, calls=False) as now:
            return self._cost(what), now


def _units(
    evidence: Evidence, measure: Measure, layers: Sequence[Layer], orders: int
) -> Iterator[tuple[_Coalitions, int]]:
    """One for each batch, or one for a measure of whole models; with its number of terms."""
    assert evidence.data is not None
    steps = orders * len(layers) or 2 ** len(layers) - 1
    units = list(evidence.data) if measure.by_batch is not None else [None]
    for index, batch in enumerate(units):
        made = _Coalitions(evidence, measure, layers, batch, index * steps, len(units) * steps)
        yield made, made.terms


def _in_turn(coalitions: _Coalitions, order: Int[np.ndarray, " layers"]) -> Float[np.ndarray, " layers"]:
    """What the cost rises as each layer goes, in that order."""
    rises, before, kept = np.zeros(len(order)), coalitions.whole, coalitions.outputs
    for step, place in enumerate(order):
        after, kept = coalitions.without(order[: step + 1].tolist(), kept, int(place))
        rises[place], before = after - before, after
    return rises


def _shared_exactly(coalitions: _Coalitions) -> Float[np.ndarray, " layers"]:
    """Shapley values from the cost without every set of layers, each computed from the set without its highest."""
    count = len(coalitions.layers)
    upward = sorted(range(count), key=lambda place: coalitions.starts[place])
    costs = {0: coalitions.whole}

    def visit(gone: list[int], mask: int, kept: BlockOutputs | None, position: int) -> None:
        for at in range(position, count):
            more, both = [*gone, upward[at]], mask | 1 << upward[at]
            costs[both], now = coalitions.without(more, kept, upward[at])
            visit(more, both, now, at + 1)

    visit([], 0, coalitions.outputs, 0)
    values = np.zeros(count)
    for mask, cost in costs.items():
        size = mask.bit_count()
        for place in range(count):
            if not mask >> place & 1:
                weight = 1 / (count * math.comb(count - 1, size))
                values[place] += weight * (costs[mask | 1 << place] - cost)
    return values
