"""One gradient pass over the data and what several criteria read from it: norms, signal and noise of layers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from keylayers.criteria.protocol import Evidence
from keylayers.criteria.support.batch_groups import groups_of
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.tensor_swap import frozen
from keylayers.layers.weight_gradients import streamed_gradients
from keylayers.measures.objective import finite, supervised

Estimate = Literal["unbiased", "plain", "batches"]
"""Of a gradient's norm: with the noise's share taken off, of the mean gradient as it is, or the mean over batches."""


@dataclass(frozen=True)
class GradientNorms:
    """Norms of the gradients of layers' weights, of the loss in nats per token."""

    whole: Float[np.ndarray, " layers"]
    """Of the gradient over all data."""
    each: Float[np.ndarray, "batches layers"]
    """Of each batch's own."""
    tokens: Float[np.ndarray, " batches"]

    def estimate(self, how: Estimate) -> Float[np.ndarray, " layers"]:
        """The norm by one of the three estimates; an unbiased one below 0 where there is less than noise."""
        if how == "plain":
            return self.whole
        if how == "batches":
            return self.each[self.tokens > 0].mean(0)
        # E |mean|^2 = |truth|^2 + sum_b w_b^2 noise_b; the products of different batches are free of noise.
        weights = self.tokens / self.tokens.sum()
        own = (weights[:, None] ** 2 * self.each**2).sum(0)
        square = (self.whole**2 - own) / (1 - float((weights**2).sum()))
        return np.sign(square) * np.sqrt(np.abs(square))

    def repeats(self, how: Estimate) -> Float[np.ndarray, "repeats layers"] | None:
        """Of groups of batches, where the estimate is a mean over batches; else None."""
        kept = self.each[self.tokens > 0]
        if how != "batches" or len(kept) < 2:
            return None
        return np.stack([kept[group].mean(0) for group in groups_of(len(kept))])


def enough_batches(layers: Sequence[Layer], settings: Any, batches: int) -> None:
    """Raises BadInput if there are too few batches to tell noise."""
    if settings.estimate == "unbiased" and batches < 2:
        raise BadInput(
            f"{settings.spelled('estimate', 'unbiased')} tells noise by batches that differ, but there is {batches}",
            "give more calibration records",
            "take a smaller `batch_size`",
            "give `settings.estimate=plain`",
        )


def gradient_norms(evidence: Evidence, layers: Sequence[Layer], what: str, *, whole: bool = True) -> GradientNorms:
    """The norms by one forward and backward pass over the data.

    Memory beside activations: one gradient; with `whole`, also the sum over batches, as large as the layers.

    Raises:
        Diverged: if a loss or a gradient is not finite; names batch and layer.
    """
    sums: dict[str, Tensor] = {}
    squares = np.zeros((len(evidence.data or ()), len(layers)))

    def take(batch: int, count: int, place: int, name: str, gradient: Tensor) -> None:
        precise = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        squares[batch, place] += float(precise.square().sum(dtype=torch.float64))
        if whole:
            sums[name] = precise.clone() if name not in sums else sums[name].add_(precise)

    tokens = run_batches(evidence, layers, what, take)
    check_gradients(squares, layers, what)
    total = np.zeros(len(layers))
    for place, layer in enumerate(layers):
        found = [sums[name] for name in layer.parameters if name in sums]
        total[place] = sum(float(one.square().sum(dtype=torch.float64)) for one in found) ** 0.5 / tokens.sum()
    return GradientNorms(total, np.sqrt(squares) / np.maximum(tokens, 1)[:, None], tokens)


def run_batches(
    evidence: Evidence, layers: Sequence[Layer], what: str, take: Callable[[int, int, int, str, Tensor], None]
) -> Float[np.ndarray, " batches"]:
    """Forward and backward passes of the summed loss of every batch; `take(batch, its tokens, place, name, gradient)`
    sees each gradient once. Tokens of the batches."""
    assert evidence.model is not None and evidence.data is not None
    tokens, now = np.zeros(len(evidence.data)), (0, 0)
    with (
        frozen(evidence.model),
        streamed_gradients(evidence.model, layers, lambda *found: take(*now, *found)) as model,
    ):
        for index, batch in enumerate(evidence.data):
            loss, count = evidence.loss(model, batch)
            finite(float(loss.detach()), f"{what}: the loss of batch {index}")
            tokens[index], now = count, (index, count)
            if count:
                loss.backward()
            if evidence.progress:
                evidence.progress(index + 1, len(evidence.data), 0.0)
    supervised(int(tokens.sum()))
    return tokens


def check_gradients(squares: Float[np.ndarray, "batches layers"], layers: Sequence[Layer], what: str) -> None:
    """Raises Diverged, naming batch and layer, for a gradient that is not finite."""
    for batch, place in np.argwhere(~np.isfinite(squares))[:1]:
        finite(float(squares[batch, place]), f"{what}: the gradient of layer {layers[place].name} on batch {batch}")
