"""A ranking of one network for the layers of another: by canonical role and relative depth."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from keylayers.errors import BadScores
from keylayers.layers.layer import Layer
from keylayers.layers.roles import role_of, stand_ins
from keylayers.maths.ranks import average_ranks
from keylayers.scores.checks import checked_layers
from keylayers.scores.provenance import Provenance
from keylayers.scores.scores import LayerScores

Way = Literal["role", "stand-in", "depth"]
NOTE = "transferred"
"""Where in the settings of the provenance a transferred ranking says what it came from."""


@dataclass(frozen=True)
class Place:
    """A role at a span of relative depth; a layer outside the blocks lies between two of them, in no width."""

    role: str
    block: int | None
    low: Fraction
    high: Fraction
    kind: str
    siblings: frozenset[str]
    """Kinds of the same role in the same block, its own included: experts of a list, say."""


def transferred(scores: LayerScores, layers: Sequence[Layer], model: Mapping[str, Any] | None = None) -> LayerScores:
    """The ranking as the layers of another network would have it; ordinal, values in (0, 1).

    A layer's *rank share* is (its rank - 1/2) / number of layers, ties sharing their mean rank. Block b of L spans the
    relative depths b/L to (b+1)/L around u = (b + 1/2)/L; a layer takes the mean rank share of its role over its own
    span. So the same network keeps its order, a network of twice the depth gives each pair of blocks their parent's
    place, one of half the depth the mean of two, and what grows with depth goes on growing. A role that a block of the
    source lacks is read off its stand-ins (`keylayers.layers.roles.stand_ins`); what no block of the source has takes
    the mean over all roles at its depth. `provenance.settings["transferred"]` says how many layers went which way.

    Repeats, groups and bounds do not transfer. `model` is the identity of the other network, for the provenance. Depth
    is counted over the layers that are listed: give all layers of a granularity.

    Raises:
        BadScores: if no layer inside the blocks corresponds; a head alone does not carry a ranking over.
    """
    # deviates: interpolation usually runs straight between block centres, which mixes neighbours when depth doubles;
    # here over spans, so that a network of doubled blocks gets its parents' places exactly
    found = checked_layers(layers, BadScores)
    source = _Source(scores)
    places = _places(found)
    values, ways, used = [], [], defaultdict[str, dict[str, None]](dict)
    for place in places:
        value, way, read = source.share(place)
        values.append(float(value))
        ways.append(way)
        if way == "stand-in":
            used[place.role] |= dict.fromkeys(read)
    _require_correspondence(source.places, places, ways)
    note = {
        "from": {
            "sha256": scores.sha256,
            "criterion": scores.criterion,
            "model": scores.provenance.model,
            "settings": scores.provenance.settings,
            "layers": len(scores.layers),
        },
        "by_role": ways.count("role"),
        "by_stand_in": ways.count("stand-in"),
        "by_depth_alone": ways.count("depth"),
        "stand_ins": {role: list(read) for role, read in used.items()},
        "without_counterpart": list(
            dict.fromkeys(p.role for p, way in zip(places, ways, strict=True) if way == "depth")
        ),
    }
    origin = Provenance(model=dict(model or {}), data=scores.provenance.data, settings={NOTE: note})
    name = f"{NOTE}_{scores.criterion}"
    return LayerScores(found, np.array(values), name, scores.granularity, origin, ordinal=True)


class _Source:
    """Rank shares by block, role and kind. Exact fractions: what ties in the source ties in the transferred ranking."""

    def __init__(self, scores: LayerScores) -> None:
        count = len(scores.layers)
        shares = [Fraction(2 * rank - 1) / (2 * count) for rank in map(Fraction, average_ranks(scores.values).tolist())]
        self.places = _places(scores.layers)
        self.depth = _depth(scores.layers)
        self.blocks: dict[int, _Shares] = {block: _Shares() for block in sorted(_blocks(scores.layers))}
        self.beside = _Shares()
        for place, share in zip(self.places, shares, strict=True):
            there = self.beside if place.block is None else self.blocks[place.block]
            there.by_kind.setdefault(place.role, {})[place.kind] = share
        self._curves: dict[tuple, dict[int, _Read]] = {}

    def share(self, place: Place) -> "tuple[Fraction, Way, tuple[str, ...]]":
        """The rank share at a place, how it was found, and the roles it was read off."""
        if place.block is None:
            if read := self.beside.read(place):
                return read.value, read.way, read.roles
        elif curve := self._curve(place):
            over = _overlaps(tuple(curve), self.depth, place.low, place.high)
            value = sum((weight * curve[block].value for block, weight in over), Fraction(0))
            reads = [curve[block] for block, _ in over if curve[block].way != "role"]
            return value, "stand-in" if reads else "role", tuple(role for read in reads for role in read.roles)
        return self._at_depth(place), "depth", ()

    def _curve(self, place: Place) -> "dict[int, _Read]":
        """What each block of the source that can says about a role."""
        key = (place.role, place.kind if len(place.siblings) > 1 else "", place.siblings)
        if key not in self._curves:
            self._curves[key] = {block: read for block, shares in self.blocks.items() if (read := shares.read(place))}
        return self._curves[key]

    def _at_depth(self, place: Place) -> Fraction:
        """The mean share of all layers of the blocks there; the middle where the source has no blocks."""
        if not self.blocks:
            return Fraction(1, 2)
        over = _overlaps(tuple(self.blocks), self.depth, place.low, place.high)
        return sum((weight * self.blocks[block].mean for block, weight in over), Fraction(0))


@dataclass(frozen=True)
class _Read:
    value: Fraction
    way: Way
    roles: tuple[str, ...]


@dataclass
class _Shares:
    """The rank shares of one block, or of what lies beside the blocks."""

    by_kind: dict[str, dict[str, Fraction]] = field(default_factory=dict)
    """Role, then kind."""

    def read(self, place: Place) -> _Read | None:
        """What is said here about a role: its own share, or the mean of the groups that stand for it."""
        own = self.by_kind.get(place.role, {})
        if own.keys() == place.siblings:  # the same experts, one by one
            return _Read(own[place.kind], "role", (place.role,))
        groups = stand_ins(place.role, self.by_kind.keys())
        if not groups:
            return None
        value = _mean([_mean([self.means[role] for role in group]) for group in groups])
        return _Read(value, "role" if own else "stand-in", tuple(role for group in groups for role in group))

    @cached_property
    def means(self) -> dict[str, Fraction]:
        """Mean share of each role."""
        return {role: _mean(list(kinds.values())) for role, kinds in self.by_kind.items()}

    @cached_property
    def mean(self) -> Fraction:
        """Mean share of all layers."""
        return _mean([share for kinds in self.by_kind.values() for share in kinds.values()])


def _blocks(layers: Sequence[Layer]) -> set[int]:
    return {layer.block for layer in layers if layer.block is not None}


def _depth(layers: Sequence[Layer]) -> int:
    """Number of blocks, as far as layers tell."""
    return max(_blocks(layers), default=0) + 1


def _places(layers: Sequence[Layer]) -> list[Place]:
    """Role and span of each layer."""
    roles = [role_of(layer) for layer in layers]
    alike: dict[tuple[int | None, str], set[str]] = defaultdict(set)
    for layer, role in zip(layers, roles, strict=True):
        alike[layer.block, role].add(layer.kind)
    siblings = {key: frozenset(kinds) for key, kinds in alike.items()}
    count, passed, found = _depth(layers), 0, []
    for layer, role in zip(layers, roles, strict=True):
        passed = passed if layer.block is None else max(passed, layer.block + 1)
        ends = (passed, passed) if layer.block is None else (layer.block, layer.block + 1)
        low, high = (Fraction(end, count) for end in ends)
        found.append(Place(role, layer.block, low, high, layer.kind, siblings[layer.block, role]))
    return found


@lru_cache(maxsize=4096)
def _overlaps(blocks: tuple[int, ...], depth: int, low: Fraction, high: Fraction) -> list[tuple[int, Fraction]]:
    """Which part of the span from low to high is nearest to the middle of which block; a point belongs to one block.

    `blocks` ascend; those between them do not have the role.
    """
    middles = [Fraction(2 * block + 1, 2 * depth) for block in blocks]
    edges = [Fraction(0), *((a + b) / 2 for a, b in pairwise(middles)), Fraction(1)]
    if low == high:
        return [
            (next(block for block, edge in reversed([*zip(blocks, edges, strict=False)]) if edge <= low), Fraction(1))
        ]
    found = ((block, min(high, b) - max(low, a)) for block, (a, b) in zip(blocks, pairwise(edges), strict=True))
    return [(block, overlap / (high - low)) for block, overlap in found if overlap > 0]


def _mean(values: Sequence[Fraction]) -> Fraction:
    return sum(values, Fraction(0)) / len(values)


def _require_correspondence(source: Sequence[Place], places: Sequence[Place], ways: Sequence[Way]) -> None:
    """Raises BadScores unless some layer inside the blocks corresponds: a head alone does not carry a ranking over."""
    blocks = any(place.block is not None for place in (*source, *places))
    if any(way != "depth" for place, way in zip(places, ways, strict=True) if not (blocks and place.block is None)):
        return
    have, want = (list(dict.fromkeys(p.role for p in side))[:8] for side in (source, places))
    raise BadScores(
        f"no layer corresponds: the scores are of {', '.join(have)}; the other model has {', '.join(want)}. A ranking "
        "transfers between networks whose blocks hold layers of the same sorts, at one granularity"
    )
