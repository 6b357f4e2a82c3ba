"""A report's plots as files, SVG and PNG, for papers and slides; the page draws its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keylayers.report.arms import Curve, Tuning
from keylayers.report.canvas import FRAME, MARK, picture, saved
from keylayers.report.choice import Choice
from keylayers.report.collect import STAGE_ONE, Collected, Ranking
from keylayers.report.shapes import SHADES, heat, thinned
from keylayers.report.words import printable
from keylayers.scores.tiers import split_tiers

MOST_LAYERS = 40
"""Layers of the ranking's plot; more would be no picture."""
MOST_NUMBERED = 400
"""Cells of a heatmap that are numbered; smaller ones could not be read."""
DASHES = ("-", "--", ":", "-.")


def draw(collected: Collected, choice: Choice | None, folder: Path) -> tuple[Path, ...]:
    """Draws what the runs have into the folder: heatmap, ranking, arms, learning; returns the files.

    Raises:
        BadInput: if the folder cannot be written.
    """
    wanted: dict[str, Callable[[Any], None]] = {}
    tuning = collected.tuned.tuning if collected.tuned else None
    if choice is not None and choice.ranking is not None:
        ranking, names = choice.ranking, frozenset(choice.names)
        wanted["heatmap"] = lambda figure: _heatmap(figure, ranking, names)
        wanted["ranking"] = lambda figure: _ranking(figure, ranking, names)
    if tuning is not None:
        wanted["arms"] = lambda figure: _arms(figure, tuning)
    groups = [(run.name, run.curves) for run in collected.runs if run.curves]
    groups += [(f"masks: {run.name}", run.mask_curves) for run in collected.runs if run.mask_curves]
    groups += [(arm.policy, arm.curves) for arm in tuning.arms if arm.curves] if tuning else []
    if groups:
        wanted["learning"] = lambda figure: _learning(figure, groups)
    written = []
    for name, paint in wanted.items():
        with picture() as figure:
            paint(figure)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # once is enough for both files
            for suffix in (".svg", ".png"):
                written.append(saved(figure, folder / (name + suffix)))
    return tuple(written)


def _heatmap(figure: Any, ranking: Ranking, chosen: frozenset[str]) -> None:
    from matplotlib.patches import Rectangle

    drawn = heat(ranking.scores, chosen, split_tiers(ranking.scores, max(1, len(chosen))))
    grid = np.full((len(drawn.kinds), len(drawn.blocks)), np.nan)
    for cell in drawn.cells:
        grid[cell.row, cell.column] = cell.shade
    figure.set_size_inches(2.2 + 0.36 * len(drawn.blocks), 1.4 + 0.26 * len(drawn.kinds))
    axes = figure.subplots()
    axes.imshow(grid, aspect="auto", cmap="cividis", vmin=0, vmax=SHADES - 1)
    for cell in drawn.cells:
        if len(drawn.cells) <= MOST_NUMBERED:
            ink = "white" if cell.shade < SHADES / 2 else "#111111"
            text = f"{cell.rank}?" if cell.undecided else f"{cell.rank}"
            axes.text(cell.column, cell.row, text, ha="center", va="center", fontsize=7, color=ink)
        if cell.chosen:
            corner = (cell.column - 0.46, cell.row - 0.44)
            axes.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, edgecolor=FRAME, linewidth=1.4))
    _labels(axes, drawn.blocks, drawn.kinds)
    axes.set_xlabel("block (–: outside the blocks)")
    axes.set_title(printable(f"{ranking.label}: rank of each layer, 1 the most critical; framed: chosen"))


def _labels(axes: Any, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Names on both axes; of many columns each n-th."""
    step = -(-len(columns) // 40)
    places = range(0, len(columns), step)
    axes.set_xticks(places, [printable(columns[i]) for i in places])
    axes.set_yticks(range(len(rows)), [printable(row) for row in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _ranking(figure: Any, ranking: Ranking, chosen: frozenset[str]) -> None:
    scores = ranking.scores
    order = scores.order()[:MOST_LAYERS]
    bounds, values = scores.interval(), scores.values[order]
    figure.set_size_inches(5.6, 0.9 + 0.17 * len(order))
    axes, places = figure.subplots(), np.arange(len(order))
    if bounds is not None:
        axes.hlines(places, bounds[order, 0], bounds[order, 1], color=MARK, alpha=0.5, linewidth=2)
    inside = np.array([scores.layers[i].name in chosen for i in order])
    axes.plot(values[inside], places[inside], "D", color=FRAME, markersize=4, label="chosen")
    axes.plot(values[~inside], places[~inside], "o", color=MARK, markersize=4, label="not chosen")
    axes.set_yticks(places, [printable(scores.layers[i].name) for i in order], fontsize=6.5)
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.legend(frameon=False, loc="lower right")
    axes.set_xlabel(printable(f"score by {scores.criterion}" + (", 95 % interval" if bounds is not None else "")))
    axes.set_title(f"The {len(order)} most critical of {len(scores.layers)} layers")


def _arms(figure: Any, tuning: Tuning) -> None:
    first, places = tuning.arms[0], range(len(tuning.arms))
    figure.set_size_inches(7.2, 1.2 + 0.32 * len(tuning.arms))
    left, right = figure.subplots(1, 2, sharey=True)
    for place, arm in enumerate(tuning.arms):
        shape = {"marker": "D" if arm is first else "o", "color": FRAME if arm is first else MARK, "markersize": 5}
        shape |= {"markerfacecolor": "white"} if arm.is_random else {}
        if arm.interval is not None:
            left.hlines(place, arm.interval.low, arm.interval.high, color=MARK, alpha=0.5, linewidth=3)
        left.plot(arm.mean, place, **shape)
        paired = first.minus(arm)
        if arm is not first:
            if paired is not None:
                right.hlines(place, paired.interval.low, paired.interval.high, color=MARK, alpha=0.5, linewidth=3)
            right.plot(first.mean - arm.mean, place, **shape)
    right.axvline(0, color="#555555", linestyle="--", linewidth=0.8)
    left.set_yticks(places, [printable(arm.policy) for arm in tuning.arms])
    left.set_ylim(len(tuning.arms) - 0.5, -0.5)
    left.set_xlabel("held-out loss, nats per token")
    right.set_xlabel("first arm minus this one")
    seeds = len(first.losses)
    left.set_title(f"95 % intervals over {seeds} seeds" if seeds > 1 else "one seed, no intervals")


def _learning(figure: Any, groups: Sequence[tuple[str, Sequence[Curve]]]) -> None:
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure.set_size_inches(2.7 * columns, 0.5 + 1.7 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel, (name, curves) in zip(panels.flat, groups, strict=False):
        for place, one in enumerate(curves):
            steps, losses = zip(*thinned(one.losses), strict=True) if one.losses else ((), ())
            label = "training" if one.seed is None else f"seed {one.seed}"
            panel.plot(steps, losses, DASHES[place % len(DASHES)], color="black", linewidth=0.9, label=label)
        panel.set_title(printable(f"{STAGE_ONE}: {name}" if curves[0].seed is None else name), fontsize=7)
        if len(curves) > 1:
            panel.legend(frameon=False, fontsize=6)
    for panel in panels.flat[len(groups) :]:
        panel.axis("off")
    figure.supxlabel("step", fontsize=8)
    figure.supylabel("training loss, nats per token", fontsize=8)
