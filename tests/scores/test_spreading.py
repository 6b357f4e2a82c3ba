"""Scores of blocks, given to the layers inside them."""

import numpy as np
import pytest

from keylayers.errors import BadScores
from keylayers.layers.naming import named_layers
from keylayers.scores.scores import LayerScores
from keylayers.scores.spreading import spread, ties_shuffled
from tests.tiny_models import CAUSAL, build


@pytest.mark.parametrize("name", sorted(CAUSAL))
@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_every_layer_takes_the_score_of_what_holds_it(name, granularity):
    model = build(name)
    holders, layers = named_layers(model, granularity), named_layers(model, "linear")
    values = np.arange(len(holders), dtype=float)
    repeats = np.stack([values, -values])
    found = spread(LayerScores(holders, values, "x", granularity, repeats=repeats), layers)
    assert found.layers == layers and found.granularity == "linear"
    for layer, value, first, second in zip(layers, found.values, *found.repeats, strict=True):
        holding = [place for place, one in enumerate(holders) if f"{layer.name}.".startswith(f"{one.name}.")]
        assert len(holding) <= 1
        assert value == (values[holding[0]] if holding else values.mean()) == first == -second
        assert bool(holding) == (layer.block is not None) or granularity == "sublayer"


def test_a_layer_itself_is_its_own_holder_and_strangers_are_refused():
    layers = named_layers(build("llama"), "linear")
    scores = LayerScores(layers, np.arange(len(layers), dtype=float), "x", "linear")
    np.testing.assert_array_equal(spread(scores, layers).values, scores.values)
    with pytest.raises(BadScores, match="lies within a scored one"):
        spread(scores, named_layers(build("gpt2"), "linear")[:-1])


def test_layers_that_tie_are_ordered_by_chance_and_others_as_they_were():
    layers = named_layers(build("llama"), "linear")
    values = np.array([float(layer.block or 0) for layer in layers])
    orders = [ties_shuffled(LayerScores(layers, values, "x", "linear"), seed) for seed in range(8)]
    for one in orders:
        assert sorted(one.values) == list(range(len(layers)))
        ranked = [layer.block or 0 for layer in one.ranking()]
        assert ranked == sorted(ranked, reverse=True)
    assert len({tuple(layer.name for layer in one.ranking()) for one in orders}) == 8
    again = ties_shuffled(LayerScores(layers, values, "x", "linear"), 3)
    np.testing.assert_array_equal(again.values, orders[3].values)
