"""Where a value came from: model, data, settings, seed, versions, cost; plain JSON throughout."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np

from keylayers.errors import BadInput


@dataclass(frozen=True)
class Provenance:
    """Everything needed to make the value again; each field is reduced to plain JSON at construction."""

    model: dict[str, Any] = field(default_factory=dict)
    """`id`, `revision`, `architecture`, `parameters`, as far as they are known."""
    data: tuple[dict[str, Any], ...] = ()
    """One entry per data set: `id`, `sha256`, `records`."""
    settings: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    versions: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        for name in ("model", "settings", "versions"):
            object.__setattr__(self, name, plain_mapping(getattr(self, name), f"provenance.{name}"))
        entries = tuple(plain_mapping(one, f"provenance.data[{i}]") for i, one in enumerate(self.data))
        object.__setattr__(self, "data", entries)
        for name in ("seed", "seconds", "device"):
            object.__setattr__(self, name, plain(getattr(self, name), f"provenance.{name}"))


def plain_mapping(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A deep copy of the mapping as plain JSON. Raises BadInput naming the entry that JSON cannot hold."""
    if not isinstance(value, Mapping):
        raise BadInput(f"{where} must be a mapping of names to values, got {type(value).__name__}")
    return {_key(key, where): plain(one, f"{where}.{key}") for key, one in value.items()}


def plain(value: Any, where: str) -> Any:
    """A deep copy as plain JSON: tuples become lists, numpy scalars and arrays numbers and lists, paths text.

    Raises:
        BadInput: for a non-finite number or an object without a JSON form; names the entry.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadInput(f"{where} is {value}, which JSON cannot hold; leave it out or give a finite number")
        return value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return plain_mapping(value, where)
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes | bytearray):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [plain(one, f"{where}[{i}]") for i, one in enumerate(items)]
    raise BadInput(
        f"{where} is a {type(value).__name__}; provenance holds text, numbers, true/false, none, lists, mappings"
    )


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise BadInput(f"{where} has the key {key!r}; JSON keys are text, write {str(key)!r}")
    return key
