"""Costs of a model without some of its layers; blocks below the lowest one are computed once per batch."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.criteria.protocol import Evidence
from keylayers.errors import BadInput
from keylayers.layers.ablating import Exchange, Fill, Means, ablated, contributions
from keylayers.layers.layer import Layer
from keylayers.layers.prefix import BlockOutputs, block_outputs, bypassed, resumed
from keylayers.layers.tensor_swap import frozen
from keylayers.measures.measure import Measure
from keylayers.measures.objective import Batch, finite

Replace = Literal["zero", "mean", "resample"]


def costs_without(
    evidence: Evidence, sets: Sequence[Sequence[Layer]], replace: Replace = "zero", seed: int = 0
) -> tuple[Float[np.ndarray, " units"], Float[np.ndarray, "units sets"], list[int]]:
    """Summed cost of each batch (or record) with all layers; without each set of them; terms of each batch.

    The cost is the evidence's measure, else its loss. Memory: the outputs of all blocks for one batch; for `mean` a
    vector per module; for `resample`, which sees every layer once more as it is, what the matrices of one set return.

    Raises:
        Diverged: if a cost is not finite; names batch and layers.
        BadInput: for a block that changes the shape of its input, or what cannot be resampled.
    """
    assert evidence.model is not None and evidence.data is not None
    model, measure = evidence.model, evidence.measure or Measure("loss", by_batch=evidence.loss)
    with frozen(model), torch.no_grad():
        means = mean_contributions(evidence, sets) if replace == "mean" else None
        if measure.by_batch is None:
            return _costs_of_records(evidence, measure, sets, replace, means)
        units = len(evidence.data)
        whole, without, terms = np.zeros(units), np.zeros((units, len(sets))), [0] * units
        for row, batch in enumerate(evidence.data):
            exchange = Exchange(_rows(batch), token_places(batch), (seed, row)) if replace == "resample" else None
            with block_outputs(model) as outputs:
                value, terms[row] = measure.by_batch(model, batch)
            whole[row] = finite(float(value), f"the {measure.name} of batch {row}")
            for column, layers in enumerate(sets):
                if exchange is not None:
                    exchange.forget()
                    start = min(map(outputs.start, layers))
                    with resumed(model, outputs, start), contributions(model, layers, exchange.see):
                        measure.by_batch(model, batch)
                with removed(model, layers, outputs, means if exchange is None else exchange):
                    value, _ = measure.by_batch(model, batch)
                without[row, column] = finite(float(value), _what(measure, layers, f"batch {row}"))
                if evidence.progress:
                    evidence.progress(row * len(sets) + column + 1, units * len(sets), 0.0)
    return whole, without, terms


def _costs_of_records(
    evidence: Evidence, measure: Measure, sets: Sequence[Sequence[Layer]], replace: Replace, means: Means | None
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    assert evidence.model is not None and measure.by_record is not None
    if replace == "resample":
        raise BadInput(
            f"replace=resample exchanges outputs between the records of a batch, which the measure {measure.name!r} "
            "does not keep together; give `settings.replace=zero` or mean, or measure loss, tokens or answers."
        )
    whole, columns = np.asarray(measure.by_record(evidence.model), dtype=np.float64), []
    for column, layers in enumerate(sets):
        with ablated(evidence.model, layers, means):
            columns.append(np.asarray(measure.by_record(evidence.model), dtype=np.float64))
        for record, value in enumerate(columns[-1]):
            finite(float(value), _what(measure, layers, f"record {record}"))
        if evidence.progress:
            evidence.progress(column + 1, len(sets), 0.0)
    return whole, np.stack(columns, axis=1), [1] * len(whole)


def _what(measure: Measure, layers: Sequence[Layer], where: str) -> str:
    return f"the {measure.name} of {where} without {', '.join(layer.name for layer in layers)}"


@contextmanager
def removed(
    model: nn.Module,
    layers: Collection[Layer],
    outputs: BlockOutputs,
    fill: Fill | None = None,
    start: int | None = None,
) -> Iterator[nn.Module]:
    """The model without the layers' contributions, on the batch of which `outputs` were kept; a removed block costs
    nothing. Blocks below `start` (default: the lowest of the layers) answer from what was kept."""
    first = min((outputs.start(layer) for layer in layers), default=len(outputs)) if start is None else start
    free = {
        layer.block: None if fill is None else partial(fill, layer.name)
        for layer in layers
        if layer.kind == "block" and layer.block is not None
    }
    rest = [layer for layer in layers if layer.kind != "block"]
    with ExitStack() as stack:
        stack.enter_context(resumed(model, outputs, first))
        if free:
            above = {block: plus for block, plus in free.items() if block >= first}
            stack.enter_context(bypassed(model, outputs, above))
        if rest:
            stack.enter_context(ablated(model, rest, fill))
        yield model


def mean_contributions(evidence: Evidence, sets: Sequence[Sequence[Layer]]) -> Means:
    """Mean contribution of every layer over the tokens of the data; one pass over it."""
    assert evidence.model is not None and evidence.data is not None
    means = Means()
    with contributions(evidence.model, dict.fromkeys(layer for layers in sets for layer in layers), means.see):
        for batch in evidence.data:
            means.kept = token_places(batch)
            evidence.loss(evidence.model, batch)
    return means


def token_places(batch: Batch) -> Tensor | None:
    """Which places of a batch of text are tokens and not padding, (rows, places); None for a batch of images."""
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return None
    mask = batch.get("attention_mask")
    return torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()


def _rows(batch: Batch) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))
