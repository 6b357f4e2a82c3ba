"""Scores as a picture: blocks by kinds, one panel per ranking, and how far the rankings agree."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.errors import BadInput
from keylayers.files.atomic import replacing
from keylayers.report.words import printable
from keylayers.scores.scores import LayerScores


def ranks_by_block_and_kind(
    scores: LayerScores,
) -> tuple[Float[np.ndarray, "kinds blocks"], list[str], list[str]]:
    """Rank share of each layer in [0, 1], 1 the most critical, NaN where there is none; row and column names."""
    kinds = list(dict.fromkeys(layer.kind for layer in scores.layers))
    blocks = sorted({layer.block for layer in scores.layers if layer.block is not None})
    columns: list[int | None] = [*blocks, *([None] if any(layer.block is None for layer in scores.layers) else [])]
    grid = np.full((len(kinds), len(columns)), np.nan)
    last = max(len(scores.layers) - 1, 1)
    for place, layer in enumerate(scores.ranking()):
        grid[kinds.index(layer.kind), columns.index(layer.block)] = 1 - place / last
    return grid, kinds, ["-" if block is None else str(block) for block in columns]


def draw_heatmap(scores: Sequence[LayerScores], labels: Sequence[str], path: Path) -> None:
    """Draws one panel per ranking and, for two or more, their Spearman correlations; .svg, .png or .pdf by the suffix.

    Raises:
        BadInput: for another suffix, or a folder that cannot be written.
    """
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise BadInput(f"`plot={path}`: expected a name that ends in .svg, .png or .pdf.")
    if not path.parent.is_dir():
        raise BadInput(f"`plot={path}`: cannot write there, for its folder does not exist; give one that does.")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"text.parse_math": False}):  # a name with $ in it is a name
        _draw(pyplot, scores, [printable(label) for label in labels], path)


def _draw(pyplot: Any, scores: Sequence[LayerScores], labels: Sequence[str], path: Path) -> None:
    count = len(scores) + (len(scores) > 1)
    columns = min(count, 2)
    rows = -(-count // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(6.2 * columns, 3.4 * rows), squeeze=False, layout="constrained"
    )
    panels = list(axes.flat)
    for panel, each, label in zip(panels, scores, labels, strict=False):
        grid, kinds, blocks = ranks_by_block_and_kind(each)
        panel.imshow(grid, aspect="auto", cmap="cividis", vmin=0, vmax=1)
        panel.set_yticks(range(len(kinds)), [printable(kind) for kind in kinds], fontsize=7)
        panel.set_xticks(range(len(blocks)), blocks, fontsize=7)
        panel.set_xlabel("block ('-': outside the blocks)", fontsize=8)
        panel.set_title(label, fontsize=9)
    figure.colorbar(panels[0].images[0], ax=panels[: len(scores)], label="rank (1 = most critical)", shrink=0.7)
    if len(scores) > 1:
        from keylayers.scores import agreements

        matrix = agreements(scores, 0.75, labels=labels).matrix("spearman")
        panel = panels[len(scores)]
        panel.imshow(matrix, cmap="cividis", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(matrix):
            colour = "black" if value > 0.4 else "white"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        panel.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=7)
        panel.set_yticks(range(len(labels)), labels, fontsize=7)
        panel.set_title("Spearman correlation (0 by chance)", fontsize=9)
    for panel in panels[count:]:
        panel.axis("off")
    try:
        with replacing(path) as temporary:
            kind = path.suffix.removeprefix(".")
            figure.savefig(temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    finally:
        pyplot.close(figure)
