"""Rows out of files: json, jsonl, csv, tsv, txt (each also gzipped), parquet and arrow; nothing is evaluated."""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from keylayers.errors import BadInput
from keylayers.files import check_regular, explained, reason
from keylayers.files.bounded import Unpacked, unpacked

Row = tuple[str, object]
"""Origin (`file:line` or `file[index]`) and what stands there."""


@dataclass(frozen=True)
class BadRow:
    """Stands for a row that the file format itself shows to be wrong, such as a table row with too many cells."""

    reason: str


WRAPPERS = ("data", "examples", "instances", "records", "rows", "train")
"""Keys under which a JSON object may hold its list of records."""


def file_kind(path: Path) -> str | None:
    """The suffix that decides how a file is read (`.json` for `a.json.gz`), or None if it is not a data file."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    known = suffix in READERS and not (suffix in (".parquet", ".arrow") and name.endswith(".gz"))
    return suffix if known else None


def file_rows(path: Path) -> Iterator[Row]:
    """Every row of a data file, streamed where the format allows it.

    Raises:
        BadInput: if the file is missing, of an unknown kind, truncated, not UTF-8 or malformed; names the line.
    """
    if not os.path.exists(path):
        names = os.listdir(path.parent) if os.path.isdir(path.parent) else []
        there = sorted(name for name in names if file_kind(Path(name)))
        hint = f"; {path.parent} has {', '.join(there[:8])}" if there else ""
        raise BadInput(f"no such data file: {path}{hint}")
    check_regular(path)
    kind = file_kind(path)
    if kind is None:
        raise BadInput(f"{path}: cannot tell its format from its name; expected one of {known_suffixes()}")
    yield from READERS[kind](path)


def known_suffixes() -> str:
    """The file names that can be read, for messages."""
    return f"{', '.join(READERS)} (all but .parquet and .arrow also with .gz)"


@contextmanager
def _opened(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    with unpacked(path) as file:
        try:
            with io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as handle:
                yield handle
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise BadInput(
                f"{path} is not UTF-8 text (byte 0x{byte:02x} cannot be decoded); convert it, for example with "
                f"`iconv -f LATIN1 -t UTF-8`"
            ) from None


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: invalid JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise BadInput(f"{where}: invalid JSON: {reason(error)}") from None


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with _opened(path) as handle:
        for number, line in enumerate(handle, start=1):
            if line.strip():
                yield f"{path}:{number}", _parsed(line, f"{path}:{number}")


def _json_rows(path: Path) -> Iterator[Row]:
    with _opened(path) as handle:
        content = handle.read()
    try:
        loaded = json.loads(content)
    except json.JSONDecodeError as error:
        if _is_lines(content):
            yield from _jsonl_rows(path)
            return
        where = f"{path}:{error.lineno}"
        if not content.strip():
            raise BadInput(f"{path} is empty; expected a JSON list of records") from None
        raise BadInput(f"{where}: invalid JSON: {error.msg} at column {error.colno}") from None
    except (RecursionError, ValueError):
        loaded = _parsed(content, str(path))
    if isinstance(loaded, dict):
        inner = [key for key in WRAPPERS if isinstance(loaded.get(key), list)]
        loaded = loaded[inner[0]] if len(inner) == 1 else [loaded]
    if not isinstance(loaded, list):
        raise BadInput(f"{path} holds one JSON {type(loaded).__name__}; expected a list of records")
    for index, row in enumerate(loaded):
        yield f"{path}[{index}]", row


def _is_lines(content: str) -> bool:
    """Whether a `.json` file is JSON lines after all: its first line is a whole record and more follow."""
    first, _, rest = content.lstrip().partition("\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), dict)
    except ValueError:
        return False


def _table_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """Rows of a table; a column without a name (an index, a spreadsheet's empty ones) is left out."""
    limit = csv.field_size_limit(2**31 - 1)  # answers longer than the default 128 KiB are data, not an attack
    try:
        with _opened(path, newline="") as handle:
            yield from _table(path, handle, *_delimiter(handle, delimiter))
    finally:
        csv.field_size_limit(limit)


def _table(path: Path, handle: TextIO, delimiter: str, skipped: int) -> Iterator[Row]:
    line = 1
    try:
        reader = csv.reader(handle, delimiter=delimiter, strict=True)
        header = [name.strip() for name in next((cells for cells in reader if cells), [])]
        named = [name for name in header if name]
        if len(set(named)) < len(named):
            raise BadInput(f"{path}:1: a column name occurs twice in the header: {', '.join(named)}")
        line = reader.line_num + 1 + skipped
        for cells in reader:
            over, under = cells[len(header) :], header[len(cells) :]
            if any(cells) and (any(over) or any(under)):
                yield f"{path}:{line}", BadRow(f"{len(cells)} cells where the header has {len(header)}")
            elif any(cells):  # spreadsheets end in rows of nothing
                yield f"{path}:{line}", {name: cell for name, cell in zip(header, cells, strict=False) if name}
            line = reader.line_num + 1 + skipped
    except csv.Error as error:
        raise BadInput(f"{path}:{line}: malformed table: {error}") from None


def _delimiter(handle: TextIO, usual: str) -> tuple[str, int]:
    """What parts the cells, and how many lines said so: where the usual mark makes one column, that which makes most.

    Spreadsheets of half the world write `;`, for which the comma is the decimal mark; some say so in a first line.
    """
    first = handle.readline()
    if said := re.fullmatch(r"sep=(.)\s*", first):
        return said.group(1), 1
    handle.seek(0)
    bare = re.sub(r'"[^"]*"', "", first)
    return usual if usual in bare else max((usual, ",", ";", "\t"), key=bare.count), 0


def _csv_rows(path: Path) -> Iterator[Row]:
    yield from _table_rows(path, ",")


def _tsv_rows(path: Path) -> Iterator[Row]:
    yield from _table_rows(path, "\t")


def _text_rows(path: Path) -> Iterator[Row]:
    """Paragraphs parted by blank lines; where there is no blank line, every line is one row."""
    with _opened(path) as handle:
        lines = handle.read().split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    by_line = all(line.strip() for line in lines)
    start, paragraph = 1, list[str]()
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line)
        if paragraph and (by_line or not line.strip()):
            yield f"{path}:{start}", "\n".join(paragraph)
            paragraph = []


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    check_regular(path)
    problem = f"{path} is not a sound parquet file"
    with explained(problem, "fetch it again"), pyarrow.parquet.ParquetFile(path) as table:
        stated = Unpacked(path)
        for group in range(table.num_row_groups):
            stated.add(table.metadata.row_group(group).total_byte_size)
        yield from _batch_rows(path, table.iter_batches(batch_size=256))


def _arrow_rows(path: Path) -> Iterator[Row]:
    """Rows of an Arrow file or stream; `datasets` stores its shards as streams."""
    import pyarrow

    check_regular(path)
    with explained(f"{path} is not a sound Arrow file", "fetch it again"), pyarrow.memory_map(str(path)) as held:
        is_file = held.read(6) == b"ARROW1"
        held.seek(0)
        table = pyarrow.ipc.open_file(held) if is_file else pyarrow.ipc.open_stream(held)
        yield from _batch_rows(path, map(table.get_batch, range(table.num_record_batches)) if is_file else table)


def _batch_rows(path: Path, batches: Iterable[Any]) -> Iterator[Row]:
    """Rows of Arrow's batches, in which a value that is stored once may come a million times."""
    count, index = Unpacked(path), 0
    for batch in batches:
        count.add(batch.nbytes)
        for row in batch.to_pylist():
            yield f"{path}[{index}]", row
            index += 1


READERS = {
    ".json": _json_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".txt": _text_rows,
}
