"""The house style of pictures: one figure, the same bytes every time, written whole or with a reason."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keylayers.files.atomic import replacing

MARK, FRAME = "#00458f", "#d0401c"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "keylayers",  # the same run gives the same bytes
    "text.parse_math": False,  # a name with $ in it is a name
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "savefig.dpi": 160,
}


@contextmanager
def picture() -> Iterator[Any]:
    """An empty figure of matplotlib in the house style, closed at the end; needs no screen."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE):
        figure = pyplot.figure(layout="constrained")
        try:
            yield figure
        finally:
            pyplot.close(figure)


def saved(figure: Any, path: Path) -> Path:
    """Writes a picture, the same bytes for the same figure; its place. Raises BadInput if it cannot be written."""
    kind = path.suffix.removeprefix(".")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind or None, metadata={"Date": None} if kind == "svg" else None)
    return path
