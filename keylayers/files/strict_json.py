"""Strict reading of JSON whose every field is known; writing it sealed, one item a line."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from keylayers.errors import BadInput, KeylayersError, UnknownName
from keylayers.files import check_regular, explained
from keylayers.files.atomic import replacing
from keylayers.files.digests import json_sha256

SEAL = "sha256"
"""Field that holds the sha256 of the others; a file written by hand has none."""


@dataclass(frozen=True)
class Record:
    """One JSON object being read; every complaint names the file, the field and what was expected."""

    where: str
    """File and position, as shown to the user."""
    values: Mapping[str, Any]
    error: type[KeylayersError]

    def refuse(self, field: str, expected: str) -> NoReturn:
        given = json.dumps(self.values.get(field), default=str)
        shown = given if len(given) <= 60 else given[:57] + "..."
        problem = f"is {shown}" if field in self.values else "is missing"
        raise self.error(f"{self.where}: field {field!r} {problem}; expected {expected}")

    def only(self, fields: Iterable[str]) -> None:
        """Raises for a field that the format does not have: a misspelt one would otherwise be ignored."""
        known = tuple(fields)
        for name in self.values:
            if name not in known:
                raise UnknownName(f"field in {self.where}", name, known)

    def text(self, field: str) -> str:
        value = self.values.get(field)
        return value if isinstance(value, str) and value else self.refuse(field, "a non-empty text")

    def whole(self, field: str) -> int:
        value = self.values.get(field)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        self.refuse(field, "a whole number >= 0")

    def number(self, field: str) -> float:
        value = self.values.get(field)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        self.refuse(field, "a number")

    def real(self, field: str) -> float:
        try:
            return float(self.number(field))
        except OverflowError:
            self.refuse(field, "a number that fits in 64 bits")

    def flag(self, field: str) -> bool:
        value = self.values.get(field)
        return value if isinstance(value, bool) else self.refuse(field, "true or false")

    def texts(self, field: str) -> tuple[str, ...]:
        value = self.values.get(field)
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return tuple(value)
        self.refuse(field, "a list of texts")

    def numbers(self, field: str, count: int | None = None) -> list[float]:
        value = self.values.get(field)
        if isinstance(value, list) and all(map(_is_number, value)) and count in (None, len(value)):
            return value
        self.refuse(field, "a list of numbers" if count is None else f"a list of {count} numbers")

    def table(self, field: str) -> dict[str, Any]:
        value = self.values.get(field)
        return value if isinstance(value, dict) else self.refuse(field, "an object {...}")

    def record(self, field: str) -> "Record":
        return Record(f"{self.where}, {field}", self.table(field), self.error)

    def records(self, field: str) -> list["Record"]:
        value = self.values.get(field)
        if not (isinstance(value, list) and all(isinstance(one, dict) for one in value)):
            self.refuse(field, "a list of objects [{...}, ...]")
        return [Record(f"{self.where}, {field}[{i}]", one, self.error) for i, one in enumerate(value)]

    def check_seal(self) -> None:
        """Raises if the file states a sha256, and of other content: it is damaged, or was changed by hand."""
        content = {name: value for name, value in self.values.items() if name != SEAL}
        if self.has(SEAL) and not _is_of(self.values[SEAL], content):
            raise self.error(
                f"{self.where}: does not match its {SEAL}: damaged, or changed by hand",
                f"delete the line {SEAL!r} if the change is meant",
                "delete the file to have it made again",
            )

    def has(self, field: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(field) is not None


PER_LAYER = ("layers", "repeats", "groups")


def read_json(path: str | os.PathLike[str], formats: tuple[str, str], error: type[KeylayersError]) -> Record:
    """The top object of a strict JSON file whose `format` is `formats[0]`; `formats[1]` says what makes such a file.

    Raises:
        BadInput: if the file cannot be read or is not JSON (truncated, not UTF-8, NaN or Infinity, a key given twice).
        KeylayersError: of the class given, if it is JSON of another format or version.
    """
    expected, remedy = formats
    check_regular(path, remedy)
    with explained(f"{path} is not whole, strict JSON", remedy):
        text = Path(path).read_bytes().decode("utf-8")
        top = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        _check_storable(top)
    if not isinstance(top, dict):
        raise error(
            f"{path}: holds a {type(top).__name__}, but an object of format {expected!r} was expected; {remedy}"
        )
    record = Record(str(path), top, error)
    if top.get("format") != expected:
        record.refuse("format", f"{expected!r}; {remedy}")
    return record


def write_atomically(path: str | os.PathLike[str], text: str) -> None:
    """The text as the whole file, or the file as it was: written beside it, synced, then renamed over it.

    Raises:
        BadInput: if the folder does not exist or cannot be written; nothing is left behind.
    """
    if not Path(path).parent.is_dir():
        raise BadInput(f"{path}: cannot be written (its folder does not exist); name a folder that is there")
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(text.encode())


def sealed_text(fields: Mapping[str, Any]) -> str:
    """The fields as JSON with, after the first, the sha256 of what they say, so that damage is seen when they are read.

    It is a line that can be deleted and leaves JSON: a file that is changed by hand is then no longer checked.
    """
    first = next(iter(fields))
    return json_text({first: fields[first], SEAL: json_sha256(json.loads(json_text(fields))), **fields})


def json_text(fields: Mapping[str, Any]) -> str:
    """JSON with one item per line for lists of layers and repeats, so that files differ line by line.

    Floats are written so that reading them gives the same bits.
    """
    parts = []
    for name, value in fields.items():
        if isinstance(value, list) and value:
            body = "[\n    " + ",\n    ".join(_dumps(one) for one in value) + "\n  ]"
        elif isinstance(value, dict) and value:
            body = "{\n    " + ",\n    ".join(f"{_dumps(key)}: {_dumps(one)}" for key, one in value.items()) + "\n  }"
        else:
            body = _dumps(value)
        parts.append(f"  {_dumps(name)}: {body}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _is_of(sealed: Any, content: Mapping[str, Any]) -> bool:
    try:
        return bool(sealed == json_sha256(content))
    except ValueError:  # a number beyond all floats, which was never written
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return found


def _check_storable(top: Any) -> None:
    """Raises ValueError for what is JSON, but no text or number that can be stored: half of a pair, 1e400."""
    json.dumps(top, ensure_ascii=False).encode()
    if isinstance(top, dict):  # a score that is no number is told with the name of its layer
        json.dumps({name: value for name, value in top.items() if name not in PER_LAYER}, allow_nan=False)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
