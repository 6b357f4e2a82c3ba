"""The picture of a gain curve, SVG and PNG: the ranking's with its bounds, beside random layers of the same kinds."""

from pathlib import Path

from keylayers.measures.gain_curve import GainCurve
from keylayers.report.canvas import FRAME, MARK, picture, saved


def draw_gain(curve: GainCurve, chosen: int | None, within: float, folder: Path) -> tuple[Path, ...]:
    """Draws `gain.svg` and `gain.png` into the folder. Raises BadInput if it cannot be written."""
    sizes = [point.k for point in curve.points]
    drawn = [point for point in curve.points if point.random]
    with picture() as figure:
        figure.set_size_inches(5.6, 3.2)
        axes = figure.subplots()
        lows, highs = [point.low for point in curve.points], [point.high for point in curve.points]
        axes.fill_between(sizes, lows, highs, color=MARK, alpha=0.2, linewidth=0, label="one-sided 95 % bounds")
        axes.plot(sizes, [point.share for point in curve.points], "o-", color=MARK, markersize=4, label="by score")
        every = [(point.k, share) for point in drawn for share in point.random]
        if every:
            axes.plot(*zip(*every, strict=True), "x", color="#555555", markersize=4, label="random, same kinds")
        axes.axhline(1 - within, color="#555555", linestyle="--", linewidth=0.8)
        if chosen is not None:
            axes.plot(chosen, curve.at(chosen).share, "D", color=FRAME, markersize=7, label=f"chosen: {chosen}")
        axes.set_xlabel("layers that keep their changes")
        axes.set_ylabel("share of the gain kept")
        axes.set_title(f"Gain curve on {curve.examples} calibration records; dashed: what is asked")
        axes.legend(frameon=False, loc="lower right")
        return tuple(saved(figure, folder / f"gain{suffix}") for suffix in (".svg", ".png"))
