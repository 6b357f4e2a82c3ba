"""Where the cells of a study are computed: each once, in some process, kept in the run folder."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from keylayers.runs import RunFolder
from keylayers.studies.runner import Cell, run_cells


@dataclass(frozen=True)
class Lab:
    """A run folder and the processes that fill it."""

    run: RunFolder
    compute: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    """(run folder, fields of a cell) -> its result; `do` says what is computed. Importable by name."""
    pool: Executor | None = None
    """None: this process computes."""

    def ask(self, what: str, asked: Sequence[Mapping[str, Any]], label: str = "") -> list[dict[str, Any]]:
        """What is computed for each set of arguments, in order; the same ones are computed once."""
        cells = [Cell(what, {"do": what, **each}) for each in asked]
        unique = list({cell.key: cell for cell in cells}.values())
        work = partial(self.compute, str(self.run.path))
        results = run_cells(unique, work, self.run, workers=self.pool, label=label or what)
        found = {cell.key: result for cell, result in zip(unique, results, strict=True)}
        return [found[cell.key] for cell in cells]
