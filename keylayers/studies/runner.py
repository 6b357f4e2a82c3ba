"""The cells of a study: independent measurements, each computed once, over processes, and kept for the resume."""

import gc
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from typing import Any

from keylayers.errors import BadInput
from keylayers.runs import Progress, RunFolder, digest, plain

Fields = Mapping[str, Any]
"""What tells one cell from all others: plain JSON."""

Work = Callable[[Fields], Mapping[str, Any]]

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Cell:
    """One measurement of a study: a table's name and the fields that distinguish it there."""

    table: str
    fields: Fields

    @property
    def key(self) -> str:
        """Name under which the result is kept: changes with any field."""
        return f"{self.table}-{digest(plain(self.fields))[:20]}"


def run_cells(
    cells: Sequence[Cell],
    work: Work,
    run: RunFolder,
    *,
    workers: Executor | None = None,
    label: str = "",
) -> list[dict[str, Any]]:
    """The result of every cell, in order; those the run folder holds are read back, others computed and kept at once.

    `work` takes a cell's fields and returns plain JSON. With `workers(...)` it must be importable by name. Cells start
    in the given order, so that what matters most comes first. On an error nothing more is started, and what is done
    stays.

    Raises:
        BadInput: for two cells of the same fields. Whatever `work` raises.
    """
    if not cells:
        return []
    keys = [cell.key for cell in cells]
    if len(set(keys)) != len(keys):
        twice = next(cell for cell in cells if keys.count(cell.key) > 1)
        raise BadInput(f"study {twice.table!r} asks twice for {dict(twice.fields)}; give each cell once.")
    missing = [cell for cell in cells if not run.has_part(cell.key)]
    with Progress[int](len(cells), label or cells[0].table, start=len(cells) - len(missing)) as bar:
        for cell, result in _results(missing, work, workers):
            kept = {"fields": dict(cell.fields), "result": dict(result)}
            run.part(cell.key, kept.copy)
            bar.advance(text=_shown(cell.fields))
    return [run.part(key, dict)["result"] for key in keys]


def _results(cells: Sequence[Cell], work: Work, workers: Executor | None) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    if workers is None:
        for cell in cells:
            yield cell, work(cell.fields)
        return
    running: dict[Future[Mapping[str, Any]], Cell] = {}
    waiting = list(reversed(cells))
    try:
        while waiting or running:
            while waiting and len(running) < workers._max_workers:  # type: ignore[attr-defined]
                cell = waiting.pop()
                running[workers.submit(_worked, work, dict(cell.fields))] = cell
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        for future in running:
            future.cancel()


_first = True


def _worked(work: Work, fields: Fields) -> Mapping[str, Any]:
    """In a process of its own: what its first cell left behind is imports, which no later collection looks through.

    A training asks for three collections; each takes a quarter of a second where a million objects were imported.
    """
    global _first
    result = work(fields)
    if _first:
        gc.collect()
        gc.freeze()
        _first = False
    return result


@contextmanager
def workers(processes: int) -> Iterator[Executor | None]:
    """Processes for several `run_cells`, one thread each: many small computations side by side beat one spread thin.

    None for one process, where this one serves. An error or an interrupt ends them at once, whatever they compute; so
    does the end of this process, however it ends.
    """
    if processes <= 1:
        yield None
        return
    with _one_thread_each(), ProcessPoolExecutor(processes, get_context("spawn"), _end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.terminate()  # else an interrupt waits for the longest cell
            raise


def _end_with_parent() -> None:
    """In a process of its own: ends it when the one that started it is gone (killed, say), whatever it computes."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="ends with its parent", daemon=True).start()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """What started processes find in their environment; this process's own is put back."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(THREADS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _shown(fields: Fields) -> str:
    return " ".join(str(value) for value in fields.values() if isinstance(value, str | int | float))[:60]
