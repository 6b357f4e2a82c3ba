"""Unequal LoRA ranks: the more critical a layer, the larger its adapter, at the mean rank that was asked for."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from torch import nn

from keylayers.errors import BadInput, BadScores, BadSelection
from keylayers.layers.layer import Layer, layer_named
from keylayers.layers.structure import logical_shape, parameters_of
from keylayers.scores.scores import LayerScores, shown_names
from keylayers.scores.selection import Selection

MOST = 4
"""No rank is more than this many times the mean, so that one outlying score does not take the whole budget."""


def ranks_by_score(
    scores: LayerScores, selection: Selection, rank: int, model: nn.Module | None = None
) -> dict[str, int]:
    """Layer name -> rank in proportion to its score, from 1 to 4 x `rank`; their mean is exactly `rank`.

    Given the model, no matrix gets more than its full rank, unless `rank` itself is more. Whole numbers come by largest
    remainders, ties in forward order; equal scores give equal ranks. The mean rank is kept, not the number of adapter
    parameters: a rank costs d_in + d_out of them, which differs between kinds.

    Raises:
        BadInput: for a rank below 1.
        BadSelection: if nothing is selected. UnknownName: if a selected layer has no score.
        BadScores: for scores that only state an order, or a negative one among the selected: neither gives shares.
    """
    if rank < 1:
        raise BadInput(f"rank of LoRA is {rank}: expected at least 1.")
    names = selection.names
    if not names:
        raise BadSelection("no layer is selected, so there are no ranks to give out; select some.")
    by_name = scores.by_name()
    for name in names:
        if name not in by_name:
            layer_named(scores.layers, name)
    if scores.ordinal:
        raise BadScores(
            f"ranks in proportion to the score need scores whose size means something, but these ({scores.criterion}) "
            "only state an order; use equal ranks."
        )
    values = np.array([by_name[name] for name in names])
    if (values < 0).any():
        below = [f"{name}: {value:.3g}" for name, value in zip(names, values, strict=True) if value < 0]
        raise BadScores(
            f"{len(below)} of the {len(names)} selected layers have negative scores, which are no share of a budget "
            f"({shown_names(below)}); use equal ranks, or select layers with positive scores (above:0)."
        )
    ceilings = np.full(len(names), MOST * rank)
    if model is not None:
        matrices = _matrices(model, selection.chosen)
        full = [min(matrices[name][1:]) if name in matrices else MOST * rank for name in names]
        ceilings = np.minimum(ceilings, np.maximum(full, rank))
    shares = _shares(values, rank, ceilings)
    return dict(zip(names, _whole(shares, rank * len(names), values), strict=True))


def _shares(
    values: Float[np.ndarray, " layers"], rank: int, ceilings: Int[np.ndarray, " layers"]
) -> Float[np.ndarray, " layers"]:
    """Real ranks clip(level x value, 1, ceiling) with the level at which they sum to rank x layers."""
    top = values.max()
    # The small term lets layers without any score share what is left once all others are at their ceilings.
    weights = values / top + 1e-9 if top > 0 else np.ones_like(values)
    total = rank * len(values)

    def ranks(level: float) -> Float[np.ndarray, " layers"]:
        return np.clip(level * weights, 1, ceilings)

    low, high = 0.0, ceilings.max() / weights.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if ranks(middle).sum() < total else (low, middle)
    return ranks(high)


def _whole(shares: Float[np.ndarray, " layers"], total: int, values: Float[np.ndarray, " layers"]) -> list[int]:
    """Whole numbers that sum to the total, each less than 1 from its share; a higher score never gets the smaller."""
    floors = np.floor(shares + 1e-9).astype(int)
    missing = total - int(floors.sum())
    remainders = np.round(shares - floors, 9)
    floors[np.lexsort((-values, -remainders))[:missing]] += 1
    return [int(one) for one in floors]


def adapter_size(model: nn.Module, layers: Sequence[Layer], ranks: Mapping[str, int]) -> int:
    """Number of scalars in LoRA adapters of these ranks: rank x (d_in + d_out), of each expert where they are fused.

    Raises:
        BadSelection: for a layer that is no weight matrix of this model.
    """
    matrices = _matrices(model, layers)
    if others := [layer.name for layer in layers if layer.name not in matrices]:
        raise BadSelection(f"{others[0]} is no weight matrix of {type(model).__name__}, so it has no rank.")
    return sum(ranks[name] * experts * (d_out + d_in) for name, (experts, d_out, d_in) in matrices.items())


def _matrices(model: nn.Module, layers: Iterable[Layer]) -> dict[str, tuple[int, int, int]]:
    """Layer name -> its number of experts (1 where none are fused), d_out and d_in; of weight matrices only."""
    present = parameters_of(model)
    found = {}
    for layer in layers:
        fused = layer.name in layer.parameters
        name = layer.name if fused else f"{layer.name}.weight"
        if name in layer.parameters and name in present:
            shape = logical_shape(present[name])
            experts, (d_out, *d_in) = (shape[0], shape[1:]) if fused else (1, shape)
            found[layer.name] = (experts, d_out, math.prod(d_in))
    return found
