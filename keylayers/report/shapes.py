"""Where things stand in the page's own drawings: heatmap cells, dots on a shared axis, lines of a chart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keylayers.report.arms import Curve
from keylayers.report.words import number
from keylayers.scores import LayerScores
from keylayers.scores.tiers import Tiers

SHADES = 16
"""Steps of the colour scale; the template's style sheet has one class for each."""
MOST_POINTS = 240
"""Points of a line; longer curves are averaged in equal bins."""
PORTRAIT_COLUMNS = 10
"""Most kinds that a narrow screen shows side by side; more, and the map is scrolled instead."""

HALF_COLUMNS, LANDSCAPE_COLUMNS = 16, 36
"""Most blocks that half a wide screen, and a whole one, show side by side."""


@dataclass(frozen=True)
class Cell:
    """One layer of a heatmap."""

    column: int
    row: int
    rank: int
    """1 is the most critical."""
    shade: int
    """0 the least critical, SHADES - 1 the most."""
    chosen: bool
    undecided: bool
    words: str


@dataclass(frozen=True)
class Map:
    """A ranking as blocks by kinds."""

    kinds: tuple[str, ...]
    blocks: tuple[str, ...]
    cells: tuple[Cell, ...]

    @property
    def turns(self) -> bool:
        """Whether a narrow screen shows it with blocks downwards."""
        return len(self.kinds) <= PORTRAIT_COLUMNS and len(self.blocks) > 4

    @property
    def broad(self) -> bool:
        """Whether it needs the whole width of a page."""
        return HALF_COLUMNS < len(self.blocks) <= LANDSCAPE_COLUMNS

    @property
    def deep(self) -> bool:
        """Whether it has more blocks than any screen shows side by side."""
        return len(self.blocks) > LANDSCAPE_COLUMNS


def heat(scores: LayerScores, chosen: frozenset[str], sorted_in: Tiers | None) -> Map:
    """The cells of a ranking, one per layer, in forward order.

    Layers of one kind in one block (a kind that repeats there) get rows of their own, so that none hides another.
    """
    kinds: list[tuple[str, int]] = []
    blocks = sorted({layer.block for layer in scores.layers if layer.block is not None})
    columns: list[int | None] = [*blocks, *([None] if any(layer.block is None for layer in scores.layers) else [])]
    place = {int(index): rank for rank, index in enumerate(scores.order())}
    seen: dict[tuple[str, int | None], int] = {}
    cells = []
    last = max(len(scores.layers) - 1, 1)
    for index, layer in enumerate(scores.layers):
        copy = seen[layer.kind, layer.block] = seen.get((layer.kind, layer.block), -1) + 1
        if (layer.kind, copy) not in kinds:
            kinds.append((layer.kind, copy))
        rank, tier = place[index] + 1, sorted_in.of[index] if sorted_in else None
        words = f"{layer.name}: rank {rank}, score {number(float(scores.values[index]))}"
        cells.append(
            Cell(
                column=columns.index(layer.block),
                row=kinds.index((layer.kind, copy)),
                rank=rank,
                shade=round((1 - (rank - 1) / last) * (SHADES - 1)),
                chosen=layer.name in chosen,
                undecided=tier == "undecided",
                words=words + (f", {tier}" if tier else ""),
            )
        )
    names = tuple(kind if copy == 0 else f"{kind} ({copy + 1})" for kind, copy in kinds)
    return Map(names, tuple("–" if block is None else str(block) for block in columns), tuple(cells))


@dataclass(frozen=True)
class Tick:
    """A label on an axis, at a percentage of its length."""

    at: float
    text: str


@dataclass(frozen=True)
class Scale:
    """A straight axis; places are percentages of its length."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """Where a value stands, in percent, kept on the axis."""
        return round(min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low))), 2)

    def span(self, low: float, high: float) -> tuple[float, float]:
        """Start and length of a bar, in percent."""
        return self.at(low), round(self.at(high) - self.at(low), 2)


def scale(values: Sequence[float], *, most: int = 5, margin: float = 0.04) -> Scale:
    """An axis that holds all values, with at most `most` round ticks."""
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1.0, abs(high)):
        low, high = low - (abs(low) or 1.0) * 0.05, high + (abs(high) or 1.0) * 0.05
    room = (high - low) * margin
    low, high = low - room, high + room
    step = _step((high - low) / most)
    first = math.ceil(low / step)
    axis = Scale(low, high, ())
    count = math.floor(high / step) - first + 1
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    ticks = tuple(
        Tick(axis.at(n * step), f"{n * step + 0.0:.{digits}f}".replace("-", "−")) for n in range(first, first + count)
    )
    return Scale(low, high, ticks)


@dataclass(frozen=True)
class Line:
    """A curve as the points of an SVG polyline, in a box of 100 by 100 that is stretched to its place."""

    words: str
    points: str
    dash: int
    """Which of the style sheet's dash patterns."""


@dataclass(frozen=True)
class Chart:
    """Curves on common axes."""

    title: str
    lines: tuple[Line, ...]
    x: Scale
    y: Scale
    first: float
    last: float


def charts(groups: Sequence[tuple[str, Sequence[Curve]]]) -> tuple[Chart, ...]:
    """One chart per group, all with the same axes, so that they can be read beside one another."""
    shown = [(title, [one for one in curves if one.losses]) for title, curves in groups]
    values = [loss for _, curves in shown for one in curves for loss in one.losses]
    if not values:
        return ()
    y, longest = scale(values, most=4), max(len(one.losses) for _, curves in shown for one in curves)
    x = scale([1, max(longest, 2)], most=4, margin=0.0)
    return tuple(
        Chart(
            title=title,
            lines=tuple(
                Line(
                    f"seed {one.seed}" if one.seed is not None else "training",
                    " ".join(f"{x.at(step)},{round(100 - y.at(value), 2)}" for step, value in thinned(one.losses)),
                    place % 4,
                )
                for place, one in enumerate(curves)
            ),
            x=x,
            y=y,
            first=float(np.mean([one.losses[0] for one in curves])),
            last=float(np.mean([one.losses[-1] for one in curves])),
        )
        for title, curves in shown
        if curves
    )


def thinned(losses: Sequence[float]) -> list[tuple[float, float]]:
    """Step (from 1) and loss; a long curve as the means of equal bins."""
    if len(losses) <= MOST_POINTS:
        return [(step + 1.0, value) for step, value in enumerate(losses)]
    edges = np.linspace(0, len(losses), MOST_POINTS + 1).round().astype(int)
    return [
        ((low + high + 1) / 2, float(np.mean(losses[low:high])))
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]


def _step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
