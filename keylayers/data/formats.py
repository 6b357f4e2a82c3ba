"""Formats: recognises alpaca, sharegpt, messages, prompt/completion, preferences and plain text, and reads records."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from keylayers.data import layouts
from keylayers.data.conversations import present
from keylayers.data.files import BadRow, Row
from keylayers.data.layouts import COMPLETIONS, CONVERSATIONS, PROMPTS, Unwanted
from keylayers.data.records import Record, Records, Skipped
from keylayers.data.sources import has_splits, source_rows
from keylayers.errors import BadInput, UnknownName

COLUMN_ROLES = ("prompt", "completion", "context", "system", "text", "messages")
"""What a column of one's own naming can be mapped to."""
BAD_SHARE = 0.01
"""Most of a source's records that may be bad, where nothing is said."""

_LOOKED_AT = 100  # rows from which the format is told


@dataclass(frozen=True)
class Format:
    """One way to lay out a record."""

    layout: str
    """For messages: the keys it has."""
    keys: tuple[tuple[str, ...], ...]
    """Of each of these, one column must be there."""
    read: Callable[[Mapping[str, Any], str], Record]
    """A record out of a row and its origin; raises BadInput with the reason."""

    def matches(self, row: Mapping[str, Any], holds: Callable[[object], bool] = present) -> bool:
        """Whether a row has its keys, with something in them."""
        return all(any(key in row and holds(row[key]) for key in names) for names in self.keys)

    def touches(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has something in any of its keys."""
        return any(present(row.get(key)) for names in self.keys for key in names)


def load_records(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    bad_share: float = BAD_SHARE,
    format: str = "auto",
) -> Records:
    """Reads a data source, whatever its format, leaving out at most a share `bad_share` of bad records.

    `source` is a file, a folder of shards or as `save_to_disk` writes it, a hub id (`owner/name` or
    `owner/name:configuration`) or `bundled:NAME`; `split` is for all but files. `columns` maps roles (`prompt`,
    `completion`, `context`, `system`, `text`, `messages`) to the source's own column names. `limit` stops after that
    many good records. Rows of several formats, as joined tables have them, are each read by their own. Records that
    say of themselves that their answer is bad (KTO's `label: false`) are left out and counted apart.

    Raises:
        BadInput: if the source cannot be read, fits no format, holds no good record or too many bad ones.
        UnknownName: for an unknown format, column or bundled set.
    """
    source, columns = str(source), dict(columns or {})
    if format != "auto" and format not in FORMATS:
        raise UnknownName("data format", format, ("auto", *FORMATS))
    for role in columns:
        if role not in COLUMN_ROLES:
            raise UnknownName("column role", role, COLUMN_ROLES)
    if limit is not None and limit < 1:
        raise BadInput(f"limit={limit}: expected at least 1 record")
    if not 0 <= bad_share <= 1:
        raise BadInput(f"the share of bad records to allow is {bad_share:g}: expected one between 0 and 1")

    rows = iter(source_rows(source, split))
    head = list(islice(rows, _LOOKED_AT))
    if not head:
        raise BadInput(f"{source} holds no record; expected {_known_layouts()}")
    _check_columns(columns, head)
    mixed = format == "auto" and not columns
    if format == "auto":
        format = _format_for_columns(columns) or detect_format((row for _, row in head), columns, source)

    good, bad, unwanted, used = list[Record](), list[Skipped](), 0, {format}
    for origin, row in chain(head, rows):
        try:
            fields = _mapped(row, columns)
            own = _own_format(fields, format) if mixed else format
            good.append(FORMATS[own].read(fields, origin))
            used.add(own)
        except Unwanted:
            unwanted += 1
        except BadInput as error:
            bad.append(Skipped(origin, str(error)))
        if len(good) == limit:
            break
    if unwanted and not good:
        raise BadInput(
            f"{source}: all {unwanted} answers are marked as bad ones (label: false); give good ones to learn"
        )
    _refuse_if_bad(source, format, len(good), bad, bad_share)
    own_split = split or "train" if has_splits(source) else None
    names = ", ".join(name for name in FORMATS if name in used)
    return Records(tuple(good), source, names, own_split, tuple(bad), unwanted)


def detect_format(rows: Iterable[object], columns: Mapping[str, str], source: str) -> str:
    """The name of the first format that one of the rows fits. Raises BadInput, listing the keys found."""
    keys, seen = list[str](), list[Mapping[str, Any]]()
    for row in rows:
        try:
            seen.append(_mapped(row, columns))
        except BadInput:
            continue
        for name, known in FORMATS.items():
            if known.matches(seen[-1]):
                return name
        keys = keys or sorted(map(str, seen[-1]))
    for fields in seen:  # columns that are there and hold nothing: each record will say so
        for name, known in FORMATS.items():
            if known.matches(fields, lambda value: True):
                return name
    shown = ", ".join(key if len(key) <= 40 else f"{key[:40]}..." for key in keys[:12])
    found = f"records with the keys {shown}" if keys else "neither objects nor texts"
    raise BadInput(
        f"{source} fits no known format: it holds {found}; expected {_known_layouts()}",
        "map columns of other names: `columns.prompt=MY_QUESTION` `columns.completion=MY_ANSWER`",
    )


def _own_format(fields: Mapping[str, Any], usual: str) -> str:
    """The source's format, but of a row that has nothing in its columns the one it fits instead."""
    if FORMATS[usual].touches(fields):
        return usual
    return next((name for name, known in FORMATS.items() if known.matches(fields)), usual)


def _format_for_columns(columns: Mapping[str, str]) -> str | None:
    if "messages" in columns:
        return "messages"
    if "prompt" in columns or "completion" in columns:
        return "prompt-completion"
    return "text" if "text" in columns else None


def _check_columns(columns: Mapping[str, str], head: Iterable[Row]) -> None:
    names = {str(name) for _, row in head if isinstance(row, dict) for name in row}
    for column in columns.values():
        if column not in names:
            raise UnknownName("column", column, names)


def _mapped(row: object, columns: Mapping[str, str]) -> Mapping[str, Any]:
    """The row's columns by the names that formats know, whatever the case they are written in."""
    if isinstance(row, BadRow):
        raise BadInput(row.reason)
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, dict):
        raise BadInput(f"the record is of type {type(row).__name__}, expected an object or a text")
    rivals = (PROMPTS if "prompt" in columns else ()) + (COMPLETIONS if "completion" in columns else ())
    plain = {name.strip().lower(): value for name, value in row.items() if isinstance(name, str)}
    others = {name: value for name, value in {**plain, **row}.items() if name not in rivals}
    return {**others, **{role: row.get(column) for role, column in columns.items()}}


def _refuse_if_bad(source: str, format: str, good: int, bad: list[Skipped], bad_share: float) -> None:
    if good and len(bad) <= bad_share * (good + len(bad)):
        return
    share = len(bad) / (good + len(bad))
    allowed = f"allowed {bad_share:.3g}" if good else "at least one must be good"
    lines = [f"{source}: {len(bad)} of {good + len(bad)} records are bad as {format} (share {share:.3g}, {allowed}):"]
    lines += [f"  {skipped.origin}: {skipped.reason}" for skipped in bad[:5]]
    lines += [f"  ... and {len(bad) - 5} more"] if len(bad) > 5 else []
    allow = [f"let them be left out with `bad_share={min(1.0, share * 1.01):.3g}`"] if good else []
    raise BadInput("\n".join(lines), "mend or remove them", *allow)


def _known_layouts() -> str:
    return "; ".join(f"{name} ({known.layout})" for name, known in FORMATS.items())


FORMATS: dict[str, Format] = {
    "messages": Format("messages: [{role, content}]", (("messages",),), layouts.read_messages),
    "sharegpt": Format("conversations: [{from, value}]", (CONVERSATIONS,), layouts.read_sharegpt),
    "alpaca": Format("instruction, input, output", (("instruction",), ("output",)), layouts.read_alpaca),
    "prompt-completion": Format(
        f"{' | '.join(PROMPTS)} and {' | '.join(COMPLETIONS)}", (PROMPTS, COMPLETIONS), layouts.read_pair
    ),
    "preference": Format("chosen, rejected", (("chosen",), ("rejected",)), layouts.read_preference),
    "text": Format("text, or a list of texts", (("text",),), layouts.read_text),
}
"""Every format by name, the most telling first: the first that fits is taken."""
