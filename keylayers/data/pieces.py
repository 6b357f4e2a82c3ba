"""Pieces: what a record is cut into before it is tokenised."""

from typing import NamedTuple


class Piece(NamedTuple):
    """A stretch of text."""

    text: str
    supervised: bool
    """Whether the model is to learn it."""


class Layout(NamedTuple):
    """A record as the model sees it."""

    runs: tuple[tuple[Piece, ...], ...]
    """Texts that are tokenised as one; an end-of-sequence token, supervised as what it ends, follows where `stops`."""
    stops: bool
    """Whether runs end with the end-of-sequence token; a chat template brings its own."""
