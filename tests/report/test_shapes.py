"""Places in the page's drawings: against cases worked out by hand, and what must hold for any scores and model."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import KeylayersError
from keylayers.layers import named_layers
from keylayers.layers.layer import GRANULARITIES
from keylayers.report.arms import Curve
from keylayers.report.shapes import MOST_POINTS, SHADES, charts, heat, scale, thinned
from keylayers.scores.tiers import split_tiers
from tests import tiny_models
from tests.report.examples import LAYERS, scores


def test_a_heatmap_has_every_layer_at_its_place_with_its_rank():
    found, chosen = scores(), frozenset({"lm_head", "model.layers.2.mlp.up_proj"})
    drawn = heat(found, chosen, split_tiers(found, 5))
    assert drawn.kinds == ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj", "lm_head")
    assert drawn.blocks == ("0", "1", "2", "3", "–")
    ranked = [layer.name for layer in found.ranking()]
    for cell, layer, tier in zip(drawn.cells, LAYERS, split_tiers(found, 5).of, strict=True):
        assert ranked[cell.rank - 1] == layer.name and layer.name in cell.words
        assert drawn.kinds[cell.row] == layer.kind
        assert drawn.blocks[cell.column] == ("–" if layer.block is None else str(layer.block))
        assert cell.chosen == (layer.name in chosen) and cell.undecided == (tier == "undecided")
    by_rank = sorted(drawn.cells, key=lambda cell: cell.rank)
    assert by_rank[0].shade == SHADES - 1 and by_rank[-1].shade == 0
    assert all(one.shade >= two.shade for one, two in pairwise(by_rank))


@pytest.mark.parametrize("name", list(tiny_models.ALL))
def test_no_layer_of_any_architecture_hides_another(name):
    drawn, model = 0, tiny_models.build(name)
    for granularity in GRANULARITIES:
        try:
            layers = named_layers(model, granularity)
        except KeylayersError:
            continue  # this architecture has none
        cells = heat(scores(layers=layers), frozenset(), None).cells
        assert len({(cell.row, cell.column) for cell in cells}) == len(cells) == len(layers)
        drawn += 1
    assert drawn >= 2


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_an_axis_holds_its_values_and_has_few_round_ticks(values):
    axis = scale(values)
    assert axis.low < axis.high and all(0 <= axis.at(value) <= 100 for value in values)
    assert 1 <= len(axis.ticks) <= 7 and all(0 <= tick.at <= 100 for tick in axis.ticks)
    if max(values) - min(values) > 1e-6 * max(map(abs, values)):
        assert axis.at(max(values)) - axis.at(min(values)) > 80
        assert len({tick.text for tick in axis.ticks}) == len(axis.ticks)


def test_ticks_say_where_they_stand():
    axis = scale([0.0, 10.0], margin=0.0)
    assert [(tick.at, tick.text) for tick in axis.ticks] == [
        (0, "0"),
        (20, "2"),
        (40, "4"),
        (60, "6"),
        (80, "8"),
        (100, "10"),
    ]
    assert axis.at(2.5) == 25 and axis.span(2.5, 5) == (25, 25) and axis.at(99) == 100


def test_short_curves_are_drawn_as_they_are_and_long_ones_averaged():
    assert thinned([3.0, 2.0]) == [(1, 3.0), (2, 2.0)]
    long = thinned([float(i) for i in range(10 * MOST_POINTS)])
    assert len(long) == MOST_POINTS and long[0] == (5.5, 4.5) and long[-1][1] == 10 * MOST_POINTS - 5.5
    uneven = thinned([1.0] * (MOST_POINTS + 7))
    assert len(uneven) == MOST_POINTS and {value for _, value in uneven} == {1.0}


def test_charts_share_their_axes():
    one, two = charts([("a", [Curve("a", 0, (4.0, 2.0))]), ("b", [Curve("b", 0, (3.0,)), Curve("b", 1, (1.0, 0.5))])])
    assert one.x == two.x and one.y == two.y and (one.first, one.last) == (4.0, 2.0)
    assert [line.dash for line in two.lines] == [0, 1] and [line.words for line in two.lines] == ["seed 0", "seed 1"]
    assert one.lines[0].points == f"0.0,{round(100 - one.y.at(4.0), 2)} 100.0,{round(100 - one.y.at(2.0), 2)}"
    assert charts([("a", [Curve("a", 0, ())])]) == ()
