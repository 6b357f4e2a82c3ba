"""Where a study's questions about a task are answered: each once, in some process, kept in the run folder."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from keylayers.runs import RunFolder
from keylayers.studies.lab import Lab
from keylayers.studies.text_cells import compute
from keylayers.studies.text_task import Task


@dataclass(frozen=True)
class Desk:
    """A run folder and the processes that fill it."""

    run: RunFolder
    pool: Executor | None = None
    """None: this process computes."""
    compute: Callable[[str, Mapping[str, Any]], dict[str, Any]] = compute
    """(run folder, fields of a cell) -> its result; a study with cells of its own gives another."""

    def ask(self, task: Task, what: str, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the cell function `what` gives for each set of arguments, in order; the same ones are computed once."""
        cells = [{"task": task.fields(), **each} for each in asked]
        return Lab(self.run, self.compute, self.pool).ask(what, cells, f"{task.name}: {what}")


def averaged(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number that several draws of one seed gave."""
    if len(results) == 1:
        return dict(results[0])
    numbers = [key for key, value in results[0].items() if isinstance(value, int | float)]
    return {key: sum(one[key] for one in results) / len(results) for key in numbers}
