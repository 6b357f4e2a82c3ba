"""Plain tables and texts on standard output."""

import os
from collections.abc import Sequence

from keylayers.files import printable
from keylayers.runs.quiet import quiet_libraries

__all__ = ["quiet_libraries", "say", "table"]


UNFINISHED = "> Unfinished: more parts follow, and with them verdicts may change. The same command resumes it.\n\n"
"""Above a page that is written while its run goes on."""


def say(text: str) -> None:
    """A line of results, shown at once."""
    print(text, flush=True)


def redact_paths(text: str) -> str:
    """The text with the folders of real models and data under the names of the variables that say where they are."""
    for name in ("KEYLAYERS_MODELS", "KEYLAYERS_DATA"):
        if place := os.environ.get(name):
            text = text.replace(place, f"${name}")
    return text


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns: words to the left, numbers to the right; readable in a log and in a diff."""
    cells = [list(columns), *([_line(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    right = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(columns))]
    lines = [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _line(cell: str) -> str:
    """A cell on one line, as wide as it is shown: a name of a file's may hold anything."""
    return printable(cell).replace("\n", "\\n").replace("\t", "\\t")


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "+-.0123456789" or cell == "-"
