"""The head of a report: the answer in a sentence, its figures, and what stands beside them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One figure of the answer, with what it is and what it stands beside."""

    label: str
    value: str
    beside: str


@dataclass(frozen=True)
class Bar:
    """One line of a picture of bars."""

    label: str
    length: float
    """Of the longest that there can be, 0 to 1."""
    text: str
    """The figure itself."""
    marked: bool = False


@dataclass(frozen=True)
class Bars:
    """Figures of one kind side by side."""

    title: str
    words: str
    of: str
    """What a line is of."""
    rows: tuple[Bar, ...]


@dataclass(frozen=True)
class Answer:
    """The head of a report, the pictures that belong to it, and what it does not show."""

    sentence: str
    points: tuple[str, ...]
    tiles: tuple[Tile, ...]
    bars: tuple[Bars, ...] = ()
    limits: tuple[str, ...] = ()
