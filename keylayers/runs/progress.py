"""Progress on standard error: a bar with an estimate on a terminal, else a line now and then; results keep stdout."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from keylayers.errors import worded
from keylayers.files import printable

if TYPE_CHECKING:
    import rich.progress

Item = TypeVar("Item")

INTERVAL = 10.0
"""Seconds between two plain lines at least."""

_open: list["Progress[Any]"] = []  # outermost first
_bars: "rich.progress.Progress | None" = None  # one live display for all nested bars
_said = 0.0  # when the last plain progress line was printed


class Progress(Generic[Item]):
    """Shows how far a loop is and about how long it still takes.

    Either iterate over it, or give the total, enter it and call `advance`:

        for batch in Progress(batches, "scoring"): ...
        with Progress(300, "learning gates", start=100) as bar: bar.advance(text="loss 1.23")
    """

    def __init__(self, what: Iterable[Item] | int, label: str, start: int = 0) -> None:
        self.items: Iterable[Item] = () if isinstance(what, int) else what
        self.total = what if isinstance(what, int) else start + len(what) if isinstance(what, Sized) else None
        self.label, self.start, self.done, self.text = printable(label), start, start, ""
        self.began = self.advanced = time.monotonic()
        self._task: Any = None

    def __enter__(self) -> "Progress[Item]":
        self.began = self.advanced = time.monotonic()
        _open.append(self)
        if _on_terminal():
            bars = _live()
            self._task = bars.add_task(self.label, total=self.total, completed=self.start, text="")
        elif len(_open) == 1:
            _say_progress()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _bars
        _open.remove(self)
        if self._task is not None and _bars is not None:
            _bars.remove_task(self._task) if _open else _bars.refresh()
            if not _open:
                _bars.stop()
                _bars = None
        elif kind is None and not _open and self.done > self.start:
            _say(self._line())

    def __iter__(self) -> Iterator[Item]:
        with self:
            for item in self.items:
                yield item
                self.advance()

    def advance(self, count: int = 1, text: str = "") -> None:
        """Counts `count` more as done; `text` (a loss, a name) is shown beside it."""
        self.done += count
        self.advanced = time.monotonic()
        self.text = printable(text) or self.text
        if self._task is not None and _bars is not None:
            _bars.update(self._task, completed=self.done, text=self.text)
        elif time.monotonic() - _said >= INTERVAL and (
            self.done != self.total or len(_open) > 1
        ):  # the last line follows
            _say_progress()

    @property
    def remaining(self) -> float | None:
        """Estimated seconds left, from the mean pace of what is done; None before that or without a total."""
        if self.total is None or self.done == self.start:
            return None
        pace = (self.advanced - self.began) / (self.done - self.start)  # an inner loop may be far into the next item
        return max(0.0, pace * (self.total - self.done) - (time.monotonic() - self.advanced))

    def _line(self) -> str:
        words = [f"{self.label}: {self.done}" + (f"/{self.total}" if self.total is not None else "")]
        words += [format_duration(time.monotonic() - self.began)] if self.done > self.start else []
        words += [f"about {format_duration(self.remaining)} left"] if self.remaining else []
        return ", ".join([*words, self.text] if self.text else words)


def note(text: str) -> None:
    """Prints a line on standard error, above the bars if any are shown; settings are spelled as errors spell them."""
    _say(printable(worded(text)))


def format_duration(seconds: float) -> str:
    """A duration in the unit a person would use: `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _say(text: str) -> None:
    if _bars is not None:
        _bars.console.print(text, markup=False, highlight=False)
    else:
        print(text, file=sys.stderr, flush=True)


def _say_progress() -> None:
    global _said
    _said = time.monotonic()
    _say(" > ".join(bar._line() for bar in _open))


def _live() -> "rich.progress.Progress":
    global _bars
    if _bars is None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import (
            Progress as Bars,
        )

        _bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
            speed_estimate_period=120.0,
            redirect_stdout=sys.stdout.isatty(),  # a piped stdout carries results and stays what it is
        )
        _bars.start()
    return _bars
