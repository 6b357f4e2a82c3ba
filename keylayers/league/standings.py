"""The picture of a league: what each way of choosing layers recovers of the gain, and what it costs to choose."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keylayers.measures.intervals import Interval
from keylayers.report.canvas import FRAME, MARK, picture, saved
from keylayers.report.words import printable

LEAST = 1e-3
"""Cost at which the axis ends; what costs less is drawn there."""


@dataclass(frozen=True)
class Standing:
    """One arm of a league."""

    name: str
    gain: Interval
    """Share of the gain of training all layers."""
    cost: float | None
    """Of choosing, over that of one full training; None where nothing is chosen."""
    control: bool = False
    """Whether it is there to be beaten: random sets, another low rank."""


def draw_standings(standings: Sequence[Standing], folder: Path) -> tuple[Path, ...]:
    """Draws `league.svg` and `league.png`, the first standing on top. Raises BadInput if they cannot be written."""
    with picture() as figure:
        figure.set_size_inches(7.4, 1.0 + 0.17 * len(standings))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for place, one in enumerate(standings):
            colour = FRAME if one.control else MARK
            left.hlines(place, one.gain.low, one.gain.high, color=colour, alpha=0.4, linewidth=2)
            left.plot(one.gain.estimate, place, "D" if one.control else "o", color=colour, markersize=4)
            if one.cost is not None:
                right.plot(max(one.cost, LEAST), place, "o", color=colour, markersize=4)
        _frame(left, right, standings)
        return tuple(saved(figure, folder / f"league{suffix}") for suffix in (".svg", ".png"))


def _frame(left: Any, right: Any, standings: Sequence[Standing]) -> None:
    estimates = [one.gain.estimate for one in standings]
    margin = 0.1 * (max(estimates) - min(estimates)) or 0.1
    left.set_xlim(min(estimates) - margin, max(1.0, max(estimates)) + margin)  # intervals of few seeds may be cut off
    for one in standings:
        if one.control:
            left.axvline(one.gain.estimate, color=FRAME, linestyle="--", linewidth=0.6, alpha=0.5)
    left.set_yticks(range(len(standings)), [printable(one.name) for one in standings], fontsize=6.5)
    left.set_ylim(len(standings) - 0.5, -0.5)
    left.set_xlabel("share of the gain recovered, 95 % over seeds")
    left.set_title("What they recover (dashed: controls)")
    right.set_xscale("log")
    right.xaxis.set_major_formatter("{x:g}")
    right.minorticks_off()
    right.set_xlim(left=LEAST * 0.8)
    right.axvline(1, color="#555555", linestyle="--", linewidth=0.8)
    right.set_xlabel("cost of choosing / one full training")
    right.set_title("What choosing costs")
