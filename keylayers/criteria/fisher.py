"""How sharply the model's likelihood depends on a layer's weights: the diagonal of the empirical Fisher information."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.batch_groups import per_token
from keylayers.criteria.support.cost import Work
from keylayers.criteria.support.gradients import check_gradients
from keylayers.layers.example_gradients import squared_gradients, thin_modules
from keylayers.layers.layer import Layer
from keylayers.layers.tensor_swap import frozen
from keylayers.layers.weight_gradients import streamed_gradients
from keylayers.measures.objective import Batch, finite, supervised
from keylayers.scores.scores import LayerScores


@dataclass(frozen=True)
class Fisher(CriterionSettings):
    """Settings of `fisher`."""

    loop: bool = False
    """Take every example by itself for all layers: the slow way, which the fast one is checked against."""


def _work(layers: Sequence[Layer], settings: Fisher, batches: int) -> Work:
    return Work(0, batches)  # of linear layers; others, and `loop`, take one pass per example beside


@criterion("model", "data", settings=Fisher, work=_work)
def score_fisher(evidence: Evidence, layers: Sequence[Layer], settings: Fisher) -> LayerScores:
    """Mean over examples of |d log p(answer) / d weights|^2, summed over the layer; nats^2 per example, at least 0.

    The trace of the layer's empirical Fisher information: labels are the data's, not drawn from the model (Kirkpatrick
    et al. 2017, Eq. 3; Kunstner et al. 2019 on what that changes). Squares are of each example's own gradient: those of
    a batch's mean would shrink with the batch. High = the likelihood is sensitive to the layer. For layers of linear
    maps one backward pass per batch is enough, as an example's gradient is a sum of outer products (Goodfellow 2015);
    layers that hold anything else (norms, fused experts, convolutions) take a forward and backward pass per example.
    Memory beside activations: one gradient.

    Raises:
        Diverged: if a loss or gradient is not finite. BadInput: for quantised weights of layers that are not linear.
    """
    assert evidence.model is not None and evidence.data is not None
    thin = {} if settings.loop else thin_modules(evidence.model, layers)
    sums, rows, terms = np.zeros((len(evidence.data), len(layers))), [0] * len(evidence.data), 0
    with frozen(evidence.model):
        for index, batch in enumerate(evidence.data):
            rows[index] = _rows(batch)
            if thin:
                found, count = _at_once(evidence, batch, index, thin, rows[index])
                for place in [place for place in thin if place not in found]:
                    del thin[place]  # it turned out not to tell examples apart
                for place, square in found.items():
                    sums[index, place] = square
                terms += count
            slow = [place for place in range(len(layers)) if place not in thin]
            if slow:
                squares, count = _one_by_one(evidence, batch, index, [layers[place] for place in slow], rows[index])
                sums[index, slow] = squares
                terms += count
            if evidence.progress:
                evidence.progress(index + 1, len(evidence.data), 0.0)
    supervised(terms)
    check_gradients(sums, layers, "fisher")
    values, repeats = per_token(sums, rows)
    return scored(evidence, layers, values, criterion="fisher", settings=settings, repeats=repeats)


def _rows(batch: Batch) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def _at_once(
    evidence: Evidence, batch: Batch, index: int, thin: dict[int, list[str]], rows: int
) -> tuple[dict[int, float], int]:
    """Summed squares of a batch by place of the layer, for those whose modules tell examples apart; its tokens."""
    squares: dict[str, float] = {}
    unfit: set[str] = set()

    def see(name: str, found: Tensor | None) -> None:
        if found is None:
            unfit.add(name)
        else:
            squares[name] = float(found.sum())

    names = [name for members in thin.values() for name in members]
    assert evidence.model is not None
    with torch.enable_grad(), squared_gradients(evidence.model, names, rows, see):
        loss, count = evidence.loss(evidence.model, batch)
        finite(float(loss.detach()), f"fisher: the loss of batch {index}")
        if loss.requires_grad:
            loss.backward()
    fit = {place: members for place, members in thin.items() if not unfit.intersection(members)}
    return {place: sum(squares.get(name, 0.0) for name in members) for place, members in fit.items()}, count


def _one_by_one(
    evidence: Evidence, batch: Batch, index: int, layers: Sequence[Layer], rows: int
) -> tuple[np.ndarray, int]:
    """The same by a forward and backward pass for every example; tokens of the batch."""
    sums, tokens = np.zeros(len(layers)), 0

    def take(place: int, name: str, gradient: Tensor) -> None:
        sums[place] += float(gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square().sum())

    assert evidence.model is not None
    with streamed_gradients(evidence.model, layers, take) as model:
        for row in range(rows):
            one = {
                key: value[row : row + 1] if isinstance(value, Tensor) and len(value) == rows else value
                for key, value in batch.items()
            }
            loss, count = evidence.loss(model, one)
            finite(float(loss.detach()), f"fisher: the loss of example {row} of batch {index}")
            tokens += count
            if count:
                loss.backward()
    return sums, tokens
