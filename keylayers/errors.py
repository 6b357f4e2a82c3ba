"""The errors users see: what was given, what was expected, what to do, spelled as the user typed it.

A message names a setting between backticks: `batch_size`, `dtype=float32`, `settings.position=mean`. Python users read
it so; a command, while it runs, spells it as its own flag (`spelled`), leaving out advice that takes a flag it lacks.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Spelling = Callable[[str, str | None], str | None]
"""(name of a setting, value or None) -> what the reader of the message types; None: it cannot be set, or is already."""

SETTING = re.compile(r"`([a-z_]+(?:\.[a-z_]+)?)(?:=([^`]*))?`")
_spelling: ContextVar[Spelling | None] = ContextVar("spelling", default=None)


@contextmanager
def spelled(spelling: Spelling) -> Iterator[None]:
    """While it lasts, messages name settings as `spelling` does; an error that leaves keeps the words it has then."""
    token = _spelling.set(spelling)
    try:
        yield
    except KeylayersError as error:
        error.words = str(error)
        raise
    finally:
        _spelling.reset(token)


def worded(text: str) -> str:
    """The text with its settings as the reader types them; what cannot be typed stays as it is."""
    spelling = _spelling.get()
    if spelling is None:
        return text
    return SETTING.sub(lambda found: spelling(found[1], found[2]) or found[0], text)


def _possible(remedy: str) -> bool:
    """Whether the reader can type every setting that the remedy names."""
    spelling = _spelling.get()
    return spelling is None or all(spelling(found[1], found[2]) for found in SETTING.finditer(remedy))


class KeylayersError(Exception):
    """Base of every error that is the user's to mend; the command line prints its text and exits with status 2.

    `remedies`, if any, follow the problem, which then ends without a full stop: each begins with a verb, and those that
    the reader's command cannot do are left out.
    """

    words: str | None = None
    """Its text, once a command has spelled it."""

    def __init__(self, problem: str = "", *remedies: str) -> None:
        super().__init__(problem, *remedies)

    def __str__(self) -> str:
        if self.words is not None:
            return self.words
        problem, *remedies = self.args
        if not remedies:
            return worded(problem)
        possible = list(filter(_possible, remedies))
        advice = ", ".join(possible[:-1]) + (", or " if len(possible) > 1 else "") + "".join(possible[-1:])
        return worded(f"{problem}; {advice}." if possible else f"{problem}.")


class UnknownName(KeylayersError):
    """A name that is not among the known ones; the message offers the nearest."""

    def __init__(self, what: str, given: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else "."
        shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
        super().__init__(f"unknown {what} {given!r}{hint} Known: {shown or 'none'}")
        self.given, self.near = given, tuple(near)
        self._made_of = what, given, tuple(names)

    def __reduce__(self) -> tuple[type["UnknownName"], tuple[str, str, tuple[str, ...]]]:
        return type(self), self._made_of  # it crosses from a worker, whose errors are pickled


class BadInput(KeylayersError):
    """A file, record, setting or model that cannot be used as given."""


class BadScores(KeylayersError):
    """Scores that are not one finite number per layer, or that belong to other layers."""


class BadSelection(KeylayersError):
    """A selection that is empty, total or foreign to the model, where that was not asked for."""


class Diverged(KeylayersError):
    """A loss or a gradient that stopped being a finite number; names the step and, where known, the layer."""
