"""LayerScores: one finite number per layer, higher = more critical, with its provenance, repeats and groups."""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from keylayers.axes import RepeatedScores, ScoreVector
from keylayers.errors import BadScores, UnknownName
from keylayers.layers.layer import GRANULARITIES, Layer
from keylayers.scores.checks import checked_layers, finite_array, require_names, same_array, shown_names
from keylayers.scores.provenance import Provenance
from keylayers.scores.ties import ranked

Bounds = Float[np.ndarray, "layers 2"]
STATED_LEVEL = 0.95  # coverage of `bounds`


@dataclass(frozen=True, eq=False)
class LayerScores:
    """The scores of some layers under one criterion; frozen, finite float64, higher = more critical always."""

    layers: tuple[Layer, ...]
    """What was scored, in forward order."""
    values: ScoreVector
    criterion: str
    granularity: str
    provenance: Provenance = field(default_factory=Provenance, repr=False)
    repeats: RepeatedScores | None = field(default=None, repr=False)
    """Independent runs (seeds, batches) behind the values; gives intervals."""
    groups: Mapping[str, ScoreVector] | None = field(default=None, repr=False)
    """The same score per class, language or task, by its name."""
    bounds: Bounds | None = field(default=None, repr=False)
    """95 % bounds stated by a criterion that has them by other means than repeats (bootstrap, Shapley sampling)."""
    ordinal: bool = False
    """True where only the order is known: policies that need magnitudes refuse."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "layers", checked_layers(self.layers, BadScores))
        for name in ("criterion", "granularity"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise BadScores(f"{name} must be a non-empty text, got {getattr(self, name)!r}")
        if self.granularity not in GRANULARITIES:
            raise UnknownName("granularity", self.granularity, GRANULARITIES)
        put(self, "values", finite_array(self.values, self.layers, "values", ("layers",)))
        if self.repeats is not None:
            put(self, "repeats", finite_array(self.repeats, self.layers, "repeats", ("repeats", "layers")))
        if self.bounds is not None:
            if self.repeats is not None and len(self.repeats) >= 2:
                raise BadScores("give repeats or bounds, not both: two or more repeats make their own intervals")
            bounds = finite_array(np.transpose(self.bounds), self.layers, "bounds", ("low, high", "layers")).T
            if bounds.shape[1] != 2 or (bounds[:, 0] > bounds[:, 1]).any():
                raise BadScores("bounds must be one (low, high) pair per layer with low <= high")
            put(self, "bounds", bounds)
        if self.groups is not None:
            groups = {
                name: finite_array(vector, self.layers, f"group {name!r}", ("layers",))
                for name, vector in self.groups.items()
            }
            put(self, "groups", MappingProxyType(groups))

    @classmethod
    def from_order(
        cls,
        layers: Sequence[Layer],
        order: Sequence[str | Layer],
        *,
        criterion: str,
        granularity: str,
        provenance: Provenance | None = None,
    ) -> "LayerScores":
        """Scores that only say an order, most critical first (a published ranking, a choice by hand); flagged ordinal.

        Raises:
            BadScores: unless `order` names every layer once. UnknownName: for a name that is not among the layers.
        """
        names = [one.name if isinstance(one, Layer) else one for one in order]
        require_names(layers, names)
        place = {name: len(names) - rank for rank, name in enumerate(names)}
        missing = [layer.name for layer in layers if layer.name not in place]
        if missing or len(names) != len(place):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise BadScores(
                f"an order must name each of the {len(layers)} layers once; "
                f"missing: {shown_names(missing)}; repeated: {shown_names(repeated)}"
            )
        values = np.array([place[layer.name] for layer in layers], dtype=np.float64)
        return cls(tuple(layers), values, criterion, granularity, provenance or Provenance(), ordinal=True)

    def order(self) -> Int[np.ndarray, " layers"]:
        """Positions of the layers, most critical first; ties in an order drawn with a seed that these scores fix."""
        return ranked(self.values, int(self.sha256[:16], 16))

    def ranking(self) -> tuple[Layer, ...]:
        """The layers, most critical first; ties as in `order`."""
        return tuple(self.layers[i] for i in self.order())

    def by_name(self) -> dict[str, float]:
        """Score by layer name, in forward order."""
        return dict(zip((layer.name for layer in self.layers), self.values.tolist(), strict=True))

    def interval(self, level: float = 0.95) -> Bounds | None:
        """Low and high bound of each score, shape (layers, 2); None where nothing tells the uncertainty.

        From two or more repeats: Student's t interval of their mean. Otherwise the stated bounds, which are 95 % ones.

        Raises:
            BadScores: for a level outside (0, 1), or one that the stated bounds do not have.
        """
        if not 0 < level < 1:
            raise BadScores(f"the level of an interval must lie strictly between 0 and 1, got {level}")
        if self.repeats is not None and len(self.repeats) >= 2:
            from scipy.special import stdtrit  # here: importing scipy would slow the start of every command

            count = len(self.repeats)
            mean = self.repeats.mean(axis=0)
            error = self.repeats.std(axis=0, ddof=1) / math.sqrt(count)
            reach = float(stdtrit(count - 1, 0.5 + level / 2)) * error
            return np.stack([mean - reach, mean + reach], axis=1)
        if self.bounds is not None and level != STATED_LEVEL:
            raise BadScores(f"these scores state {STATED_LEVEL:.0%} bounds and no repeats; ask level={STATED_LEVEL}")
        return self.bounds

    def each_repeat(self) -> tuple["LayerScores", ...]:
        """One LayerScores per repeat, to judge how far repeats agree; empty without repeats."""
        rows = () if self.repeats is None else self.repeats
        return tuple(
            LayerScores(self.layers, row, self.criterion, self.granularity, self.provenance, ordinal=self.ordinal)
            for row in rows
        )

    @property
    def sha256(self) -> str:
        """Digest of layers, values and criterion, by which a selection names the scores it came from."""
        text = "\n".join([self.criterion, self.granularity, *(layer.name for layer in self.layers)])
        return hashlib.sha256(text.encode() + b"\n" + self.values.astype("<f8").tobytes()).hexdigest()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the scores and a model card into a folder; see keylayers.scores.hub."""
        from keylayers.scores import hub

        hub.save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls, place: str | os.PathLike[str], revision: str | None = None) -> "LayerScores":
        """The scores in a folder or a repository of the Hugging Face hub; see keylayers.scores.hub."""
        from keylayers.scores import hub

        return hub.from_pretrained(place, revision)

    def push_to_hub(self, repo_id: str, private: bool | None = None, **options: Any) -> str:
        """Uploads the scores and a model card, and gives the commit's address; see keylayers.scores.hub."""
        from keylayers.scores import hub

        return hub.push_to_hub(self, repo_id, private=private, **options)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LayerScores):
            return NotImplemented
        mine, theirs = (
            (one.layers, one.criterion, one.granularity, one.provenance, one.ordinal, sorted(one.groups or {}))
            for one in (self, other)
        )
        return (
            mine == theirs
            and all(same_array(getattr(self, name), getattr(other, name)) for name in ("values", "repeats", "bounds"))
            and (self.groups is None) == (other.groups is None)
            and all(same_array(vector, (other.groups or {})[name]) for name, vector in (self.groups or {}).items())
        )

    __hash__ = None  # type: ignore[assignment]
