"""How much a criterion computes, said by the criterion itself: passes of one batch through the network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from keylayers.layers.layer import Layer


@dataclass(frozen=True)
class Work:
    """Passes of one batch."""

    forwards: float
    """Through the whole network, without gradients."""
    backwards: float
    """Forward and backward together."""
    partial: int = 0
    """Forward passes that start at some block, from kept outputs of the blocks below; these are in memory at once."""
    share: float = 0.0
    """Share of the blocks that such a pass computes, on average, in [0, 1]."""

    @property
    def all_forwards(self) -> float:
        """Forward passes, a partial one counted by its share."""
        return self.forwards + self.partial * self.share


Counting = Callable[[Sequence[Layer], Any, int], Work]
"""(layers, settings, number of batches) -> what scoring them computes."""


def nothing(layers: Sequence[Layer], settings: Any, batches: int) -> Work:
    """Of a criterion that never runs the model."""
    return Work(0, 0)


def one_at_a_time(layers: Sequence[Layer], settings: Any, batches: int) -> Work:
    """One pass over the data, and one more for every layer, from the layer's block upward."""
    blocks = max((layer.block + 1 for layer in layers if layer.block is not None), default=0)
    first = next((place for place, layer in enumerate(layers) if layer.block is not None), 0)
    above = 0.0
    for place, layer in enumerate(layers):
        start = layer.block if layer.block is not None else 0 if place < first else blocks
        above += (blocks - start) / blocks if blocks else 1.0
    return Work(batches, 0, partial=batches * len(layers), share=above / max(len(layers), 1))
