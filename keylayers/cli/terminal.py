"""Plain tables and texts on standard output."""

import logging
import os
import warnings
from collections.abc import Sequence


def say(text: str) -> None:
    """A line of results, shown at once."""
    print(text, flush=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns: words to the left, numbers to the right; readable in a log and in a diff."""
    cells = [list(columns), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    right = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(columns))]
    lines = [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def quiet_libraries() -> None:
    """Keeps libraries' progress bars and notes about themselves out of the results; errors still show."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|peft|transformers)\b.*")
    for name in ("transformers", "peft", "accelerate", "bitsandbytes", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()


def _is_number(cell: str) -> bool:
    return not cell or cell[0] in "+-.0123456789" or cell == "-"
