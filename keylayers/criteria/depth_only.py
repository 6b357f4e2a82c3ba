"""Depth and nothing else: the plain rival that any criterion must beat to have looked at the network at all."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import nothing
from keylayers.layers.layer import Layer
from keylayers.scores.scores import LayerScores

Order = Literal["last", "first", "middle", "ends"]
ORDERS: dict[Order, Callable[[np.ndarray], np.ndarray]] = {
    "last": lambda depth: depth,
    "first": lambda depth: 1 - depth,
    "middle": lambda depth: 1 - np.abs(2 * depth - 1),
    "ends": lambda depth: np.abs(2 * depth - 1),
}
"""Order -> score of relative depths."""


@dataclass(frozen=True)
class DepthOnly(CriterionSettings):
    """Settings of `depth_only`."""

    order: Order = "last"
    """Which layers are critical: the last, the first, those in the middle, or those at both ends."""


@criterion(settings=DepthOnly, work=nothing)
def score_depth_only(evidence: Evidence, layers: Sequence[Layer], settings: DepthOnly) -> LayerScores:
    """Relative depth u of each layer, 1 - u, 1 - |2u - 1| or |2u - 1|, in [0, 1]; needs the list of layers alone.

    Critical = what a practitioner trains who looks at nothing: the last layers by custom, and the other orders for
    comparison. With `last` and `first`, `top:k` is the policy `last:k` and `first:k`. `middle` and `ends` tie layers at
    mirrored places, in forward order.
    """
    values = ORDERS[settings.order](relative_depths(layers))
    return scored(evidence, layers, values, criterion="depth_only", settings=settings)


def relative_depths(layers: Sequence[Layer]) -> Float[np.ndarray, " layers"]:
    """(block + place inside the block) / blocks, in [0, 1]; the n-th of m layers of a block is at (n - 1/2) / m in it.

    Before the blocks 0, after them 1. Without any block: the place in forward order. Blocks count up to the last that
    has a layer in the list.
    """
    if all(layer.block is None for layer in layers):
        return (np.arange(len(layers)) + 0.5) / len(layers)
    blocks = 1 + max(layer.block for layer in layers if layer.block is not None)
    first = next(place for place, layer in enumerate(layers) if layer.block is not None)
    members, seen = Counter(layer.block for layer in layers), defaultdict[int, int](int)
    depths = np.empty(len(layers))
    for place, layer in enumerate(layers):
        if layer.block is None:
            depths[place] = 0.0 if place < first else 1.0
        else:
            depths[place] = (layer.block + (seen[layer.block] + 0.5) / members[layer.block]) / blocks
            seen[layer.block] += 1
    return depths
