"""A log of JSON lines that survives a torn line: appended whole, read leniently."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from keylayers.errors import BadInput
from keylayers.runs.provenance import plain


def append_event(path: Path, event: str, values: dict[str, Any]) -> None:
    """Appends one line with the time (seconds since 1970), the event and its values; a torn line before it is closed.

    A loss that stopped being a number is worth logging: non-finite numbers are written as text ("nan", "inf").
    """
    record = {"time": round(time.time(), 3), "event": event} | {key: _loggable(value) for key, value in values.items()}
    line = json.dumps(record, allow_nan=False) + "\n"
    try:
        with open(path, "a+b") as file:
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())
    except OSError as error:
        raise BadInput(
            f"cannot write the log {str(path)!r}: {error.strerror}; free space or give --out another folder"
        ) from error


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The log's events in order; lines torn by a killed process are left out; no file, no events."""
    events = []
    path = Path(path)
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event:
            events.append(event)
    return events


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
