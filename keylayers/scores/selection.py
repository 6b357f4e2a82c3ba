"""Selection: the chosen subset of some layers, as a mask over them, with optional weights and roles."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Int

from keylayers.axes import LayerMask, ScoreVector
from keylayers.errors import BadScores, BadSelection
from keylayers.layers.layer import Layer, total_size
from keylayers.scores.checks import (
    bool_mask,
    checked_layers,
    finite_array,
    in_blocks,
    require_names,
    same_array,
    same_layers,
    shown_names,
)
from keylayers.scores.provenance import plain_mapping


@dataclass(frozen=True, eq=False)
class Selection:
    """Chosen layers among all that could have been chosen; frozen. `~`, `&`, `|` and `-` combine selections.

    Empty and total selections are refused unless allowed, for they are nearly always a mistake upstream.
    """

    layers: tuple[Layer, ...]
    """All candidates, in forward order."""
    mask: LayerMask
    policy: str
    """How it was chosen: a policy text, or words for a choice by hand."""
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Plain JSON: the scores it came from, what the policy measured."""
    weights: ScoreVector | None = field(default=None, repr=False)
    """One number per candidate (learning rate, rank, share of an edit); 0 outside the selection."""
    roles: Mapping[str, tuple[str, ...]] | None = field(default=None, repr=False)
    """Names of chosen layers by role (`conversion`, `thinking`); a layer may have several roles or none."""
    allow_empty: bool = field(default=False, repr=False, kw_only=True)
    allow_total: bool = field(default=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "layers", checked_layers(self.layers, BadSelection))
        put(self, "mask", bool_mask(self.mask, len(self.layers)))
        if not isinstance(self.policy, str) or not self.policy:
            raise BadSelection(
                f"a selection says how it was chosen; policy must be a non-empty text, got {self.policy!r}"
            )
        put(self, "provenance", plain_mapping(self.provenance, "provenance"))
        self._check_extent()
        if self.weights is not None:
            try:
                weights = finite_array(self.weights, self.layers, "weights", ("layers",))
            except BadScores as problem:
                raise BadSelection(str(problem)) from problem
            weights = np.where(self.mask, weights, 0.0)
            weights.setflags(write=False)
            put(self, "weights", weights)
        if self.roles is not None:
            put(self, "roles", MappingProxyType({role: self._in_order(role, who) for role, who in self.roles.items()}))

    def _check_extent(self) -> None:
        count = len(self)
        if count == 0 and not self.allow_empty:
            raise BadSelection(
                f"policy {self.policy!r} chooses none of the {len(self.layers)} layers; "
                "choose at least one (from Python, allow_empty=True permits none)"
            )
        if count == len(self.layers) and not self.allow_total:
            raise BadSelection(
                f"policy {self.policy!r} chooses all {count} layers, so it selects nothing in particular; "
                "ask for 'all' if everything is meant (from Python, allow_total=True)"
            )

    def _in_order(self, role: str, names: Iterable[str]) -> tuple[str, ...]:
        """The names in forward order. Raises for one that is unknown or not chosen."""
        wanted = set(names)
        require_names(self.layers, wanted)
        outside = sorted(wanted.difference(self.names))
        if outside:
            raise BadSelection(f"role {role!r} is given to layers that are not chosen: {shown_names(outside)}")
        return tuple(name for name in self.names if name in wanted)

    @classmethod
    def of(
        cls,
        layers: Sequence[Layer],
        *,
        names: Iterable[str] | None = None,
        blocks: Iterable[int] | None = None,
        weights: ScoreVector | None = None,
        roles: Mapping[str, Iterable[str]] | None = None,
        allow_empty: bool = False,
        allow_total: bool = False,
    ) -> "Selection":
        """A choice by hand: the layers of these names, or all layers of these blocks.

        Raises:
            BadSelection: unless exactly one of `names` and `blocks` is given, or if a block does not exist.
            UnknownName: for a layer name that does not exist, with the nearest.
        """
        if (names is None) == (blocks is None):
            raise BadSelection("give either names=[...] or blocks=[...]")
        if names is not None:
            chosen = list(names)
            require_names(layers, chosen)
            mask, policy = np.isin([layer.name for layer in layers], chosen), f"names:{','.join(chosen) or 'none'}"
        else:
            numbers = sorted(set(blocks or ()))
            mask, policy = in_blocks(layers, numbers), f"blocks:{','.join(map(str, numbers)) or 'none'}"
        fixed = None if roles is None else {role: tuple(who) for role, who in roles.items()}
        return cls(tuple(layers), mask, policy, {}, weights, fixed, allow_empty=allow_empty, allow_total=allow_total)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the chosen layers, in forward order."""
        return tuple(layer.name for layer in self.chosen)

    @property
    def indices(self) -> Int[np.ndarray, " chosen"]:
        """Positions of the chosen layers among all, ascending."""
        return np.flatnonzero(self.mask)

    @property
    def chosen(self) -> tuple[Layer, ...]:
        """The chosen layers, in forward order."""
        return tuple(self.layers[i] for i in self.indices)

    @property
    def size(self) -> int:
        """Number of scalars in the parameters of the chosen layers."""
        return total_size(self.chosen)

    @property
    def share_of_parameters(self) -> float:
        """Part of all candidates' parameters that the chosen ones hold, in [0, 1]; 0 where no candidate has any."""
        return self.size / max(1, total_size(self.layers))

    def kinds(self) -> dict[str, int]:
        """Number of chosen layers of each kind of candidate, zeros included, in forward order."""
        counts = {layer.kind: 0 for layer in self.layers}
        for layer in self.chosen:
            counts[layer.kind] += 1
        return counts

    def with_role(self, role: str) -> tuple[Layer, ...]:
        """The chosen layers in that role, in forward order; empty where nobody has it."""
        wanted = set((self.roles or {}).get(role, ()))
        return tuple(layer for layer in self.chosen if layer.name in wanted)

    def __len__(self) -> int:
        return int(self.mask.sum())

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __invert__(self) -> "Selection":
        """The layers not chosen; without weights and roles, which belong to the chosen ones."""
        plain = self.policy.removeprefix("not:")
        policy = plain if plain != self.policy else f"not:{self.policy}"
        return Selection(
            self.layers, ~self.mask, policy, self.provenance, allow_empty=self.allow_empty, allow_total=self.allow_total
        )

    def __and__(self, other: "Selection") -> "Selection":
        """The layers in both; weights and roles are those of the first."""
        return self._narrowed(other, self.mask & self._other_mask(other), "&")

    def __sub__(self, other: "Selection") -> "Selection":
        """The layers in the first and not the second; weights and roles are those of the first."""
        return self._narrowed(other, self.mask & ~self._other_mask(other), "-")

    def __or__(self, other: "Selection") -> "Selection":
        """The layers in either; roles are joined, weights too where both have them and agree on shared layers.

        Raises:
            BadSelection: if only one side has weights, or a layer has two different weights.
        """
        either = self.mask | self._other_mask(other)
        roles: dict[str, tuple[str, ...]] | None = None
        if self.roles is not None or other.roles is not None:
            mine, theirs = self.roles or {}, other.roles or {}
            roles = {role: (*mine.get(role, ()), *theirs.get(role, ())) for role in {**mine, **theirs}}
        return self._combined(other, either, "|", self._joined_weights(other), roles)

    def _other_mask(self, other: "Selection") -> LayerMask:
        same_layers(self.layers, other.layers, "the two selections", BadSelection)
        return other.mask

    def _joined_weights(self, other: "Selection") -> ScoreVector | None:
        if self.weights is None and other.weights is None:
            return None
        if self.weights is None or other.weights is None:
            raise BadSelection("only one of the two selections has weights; give both weights, or neither")
        clash = self.mask & other.mask & (self.weights != other.weights)
        if clash.any():
            names = [layer.name for layer, bad in zip(self.layers, clash, strict=True) if bad]
            raise BadSelection(f"the two selections give different weights to the same layers: {shown_names(names)}")
        return np.where(self.mask, self.weights, other.weights)

    def _narrowed(self, other: "Selection", mask: LayerMask, sign: str) -> "Selection":
        left = {layer.name for layer, kept in zip(self.layers, mask, strict=True) if kept}
        roles = (
            None
            if self.roles is None
            else {role: tuple(name for name in who if name in left) for role, who in self.roles.items()}
        )
        return self._combined(other, mask, sign, self.weights, roles)

    def _combined(
        self,
        other: "Selection",
        mask: LayerMask,
        sign: str,
        weights: ScoreVector | None,
        roles: Mapping[str, tuple[str, ...]] | None,
    ) -> "Selection":
        return Selection(
            self.layers,
            mask,
            f"({self.policy} {sign} {other.policy})",
            {"first": dict(self.provenance), "second": dict(other.provenance)},
            weights,
            roles,
            allow_empty=self.allow_empty or other.allow_empty,
            allow_total=self.allow_total or other.allow_total,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selection):
            return NotImplemented
        mine, theirs = (
            (one.layers, one.policy, one.provenance, dict(one.roles or {}), one.roles is None) for one in (self, other)
        )
        return mine == theirs and same_array(self.mask, other.mask) and same_array(self.weights, other.weights)

    __hash__ = None  # type: ignore[assignment]
