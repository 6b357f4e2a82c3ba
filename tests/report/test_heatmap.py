"""The picture's numbers, its file, and what it refuses."""

import numpy as np
import pytest

from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.report.heatmap import draw_heatmap, ranks_by_block_and_kind
from keylayers.scores import LayerScores


def scores_of(values: list[float]) -> LayerScores:
    places = [(0, "q"), (0, "up"), (1, "q"), (1, "up"), (None, "lm_head")]
    layers = tuple(Layer(f"{block}.{kind}", block, kind, (f"{block}.{kind}.weight",), 4) for block, kind in places)
    return LayerScores(layers, np.array(values), "delta_norm", "linear")


def test_the_grid_holds_rank_shares_at_the_layers_places():
    grid, kinds, blocks = ranks_by_block_and_kind(scores_of([5, 1, 4, 2, 3]))
    assert kinds == ["q", "up", "lm_head"] and blocks == ["0", "1", "-"]
    expected = np.array([[1, 0.75, np.nan], [0, 0.25, np.nan], [np.nan, np.nan, 0.5]])
    np.testing.assert_array_equal(grid, expected)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_picture_is_written(tmp_path, suffix, count):
    path = tmp_path / f"scores{suffix}"
    several = [scores_of([5, 1, 4, 2, 3 + shift]) for shift in range(count)]
    draw_heatmap(several, [f"run {i}" for i in range(count)], path)
    head = path.read_bytes()[:60]
    assert head.startswith(b"\x89PNG") if suffix == ".png" else b"<?xml" in head


def test_other_suffixes_and_places_are_refused(tmp_path):
    with pytest.raises(BadInput, match="svg"):
        draw_heatmap([scores_of([5, 1, 4, 2, 3])], ["a"], tmp_path / "scores.bmp")
    with pytest.raises(BadInput, match="cannot write"):
        draw_heatmap([scores_of([5, 1, 4, 2, 3])], ["a"], tmp_path / "absent" / "scores.png")
