"""Tiers: which layers belong to the k most critical beyond doubt, which do not, and which are undecided."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from keylayers.errors import BadScores
from keylayers.scores.scores import LayerScores

Tier = Literal["in", "out", "undecided"]
TIERS: tuple[Tier, ...] = ("in", "undecided", "out")


@dataclass(frozen=True)
class Tiers:
    """One tier per layer, in forward order, for the question "is it among the `count` most critical?"."""

    of: tuple[Tier, ...]
    count: int

    def total(self, tier: Tier) -> int:
        """Layers in a tier."""
        return self.of.count(tier)

    def __str__(self) -> str:
        sure, open_ = self.total("in"), self.total("undecided")
        said = f"of the {self.count} most critical layers {sure} are certain"
        rivals = f", {open_} compete for the other {self.count - sure} places" if open_ else ""
        return f"{said}{rivals}, {self.total('out')} of all {len(self.of)} are out of question"


def split_tiers(scores: LayerScores, count: int) -> Tiers | None:
    """Whether the 95 % intervals put each layer among the `count` most critical, outside, or neither; None without any.

    A layer is in if fewer than `count` others could score as high as its lower bound; out if at least `count` others
    surely score higher than its upper bound. Intervals are taken one by one, not jointly: among many layers one in
    twenty bounds misses, so a tier is a reading aid and no test. Always #in <= count <= #in + #undecided.

    Raises:
        BadScores: unless `count` lies between 1 and the number of layers.
    """
    if not 1 <= count <= len(scores.layers):
        raise BadScores(f"tiers of {count} layers: expected between 1 and the {len(scores.layers)} that are scored")
    bounds = scores.interval()
    return None if bounds is None else Tiers(_tiers(bounds, count), count)


def _tiers(bounds: Float[np.ndarray, "layers 2"], count: int) -> tuple[Tier, ...]:
    low, high = bounds[:, 0], bounds[:, 1]
    total = len(low)
    # A layer's own upper bound always reaches its lower bound, hence the 1.
    reaching = total - np.searchsorted(np.sort(high), low, side="left") - 1
    above = total - np.searchsorted(np.sort(low), high, side="right")
    return tuple(
        "in" if rivals < count else "out" if better >= count else "undecided"
        for rivals, better in zip(reaching.tolist(), above.tolist(), strict=True)
    )
