"""Values as JSON keeps them, in one canonical text, and the digest of that text."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from keylayers.errors import BadInput
from keylayers.files.digests import json_sha256


def plain(value: Any) -> Any:
    """The value as JSON keeps it: dataclasses and mappings as dicts, tuples and arrays as lists, paths as strings.

    Raises:
        BadInput: for a number that is not finite, or a value that JSON cannot hold; the place is named (`a.b[3]`).
    """
    return _plain(value, "")


def canonical_json(value: Any) -> str:
    """One text per value, whatever the order of its keys: sorted, no spaces, ASCII; floats by their shortest repr."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, 64 hexadecimal digits."""
    return json_sha256(plain(value))


def _plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if value - value != 0:  # inf and nan alone differ from themselves
            raise BadInput(
                f"{place or 'value'} is {value}: only finite numbers are stored; give null where there is none"
            )
        return float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), f"{place}.{field.name}".lstrip("."))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{place}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return [_plain(item, place) for item in sorted(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        return _plain(value.tolist(), place)
    raise BadInput(f"{place or 'value'} is a {type(value).__name__}: JSON holds numbers, texts, lists and mappings")
