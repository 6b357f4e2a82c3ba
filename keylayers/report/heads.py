"""The head of a report: the answer in a sentence, its figures, and what stands beside them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tile:
    """One figure of the answer, with what it is and what it stands beside."""

    label: str
    value: str
    beside: str


@dataclass(frozen=True)
class Answer:
    """The head of a report."""

    sentence: str
    points: tuple[str, ...]
    tiles: tuple[Tile, ...]
