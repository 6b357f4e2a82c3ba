"""The errors users see: what was given, what was expected, what to do, spelled as the user typed it."""

import difflib
from collections.abc import Iterable


class KeylayersError(Exception):
    """Base of every error that is the user's to mend; the command line prints its text and exits with status 2."""


class UnknownName(KeylayersError):
    """A name that is not among the known ones; the message offers the nearest."""

    def __init__(self, what: str, given: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else "."
        shown = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
        super().__init__(f"unknown {what} {given!r}{hint} Known: {shown or 'none'}")
        self.given, self.near = given, tuple(near)


class BadInput(KeylayersError):
    """A file, record, setting or model that cannot be used as given."""


class BadScores(KeylayersError):
    """Scores that are not one finite number per layer, or that belong to other layers."""


class BadSelection(KeylayersError):
    """A selection that is empty, total or foreign to the model, where that was not asked for."""


class Diverged(KeylayersError):
    """A loss or a gradient that stopped being a finite number; names the step and, where known, the layer."""
