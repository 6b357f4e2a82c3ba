"""A log of JSON lines that survives a torn line: appended whole, read leniently."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from keylayers.errors import BadInput
from keylayers.files.canonical import plain
from keylayers.files.digests import json_sha256

SUM, DIGITS = "sha256", 16
"""Last key of a line, and how many digits of the sha256 of the others it holds: enough to see damage."""


def append_event(path: Path, event: str, values: dict[str, Any]) -> None:
    """Appends one line with the time (seconds since 1970), the event and its values; a torn line before it is closed.

    A loss that stopped being a number is worth logging: non-finite numbers are written as text ("nan", "inf").
    """
    record = {"time": round(time.time(), 3), "event": event} | {key: _loggable(value) for key, value in values.items()}
    line = json.dumps(record | {SUM: json_sha256(record)[:DIGITS]}, allow_nan=False) + "\n"
    try:
        with open(path, "a+b") as file:
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())
    except OSError as error:
        raise BadInput(
            f"cannot write the log {str(path)!r}: {error.strerror}", "free some space", "give another `out`"
        ) from error


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The log's events in order; lines that are torn or damaged are left out; no file, no events."""
    return [event for event in _lines(Path(path)) if event is not None]


def damaged_lines(path: str | Path) -> list[int]:
    """Numbers, from 1, of the lines that are not as they were written: torn by a killed process, or damaged since."""
    return [number for number, event in enumerate(_lines(Path(path)), start=1) if event is None]


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The event of every line that is not empty, None for one that is not whole."""
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        if line.strip():
            yield _event(line)


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or "event" not in event:
        return None
    stated = event.pop(SUM, None)
    return event if stated in (None, json_sha256(event)[:DIGITS]) else None


def _loggable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, dict):
        return {str(key): _loggable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_loggable(item) for item in value]
    if hasattr(value, "tolist"):
        return _loggable(value.tolist())
    return plain(value)
