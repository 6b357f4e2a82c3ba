"""What a paper hands in to be reproduced: its scales, its measurements, its page, its figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keylayers.runs import RunFolder
    from keylayers.studies.pages import Table

SCALES = ("smoke", "small", "full")


@dataclass(frozen=True)
class Paper:
    """A paper's experiment."""

    title: str
    scale_of: Callable[[str], Any]
    """Name of a scale -> how much is measured at it."""
    reproduce: Callable[[Any, "RunFolder", int], Iterator[Any]]
    """(scale, run folder, processes) -> all that was measured so far, after every part."""
    contents: Callable[[Any, str], tuple[str, Sequence["Table"]]]
    """(what was measured, name of the scale) -> the page's introduction and tables."""
    to_json: Callable[[Any], Mapping[str, Any]]
    """What was measured, as JSON."""
    missing_requirements: Callable[[Any], str | None] = lambda scale: None
    """Scale -> what this machine lacks for the whole of it."""

    def render_page(self, results: Any, scale: str) -> str:
        """What was measured, as Markdown."""
        from keylayers.studies.pages import page

        introduction, tables = self.contents(results, scale)
        return page(self.title, introduction, tables)
