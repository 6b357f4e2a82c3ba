"""Depth alone: the places, and that it is what the depth policies choose."""

import numpy as np
import pytest

from keylayers.criteria.depth_only import DepthOnly, relative_depths, score_depth_only
from keylayers.criteria.protocol import Evidence
from keylayers.errors import UnknownName
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.scores import select
from tests import tiny_models


def scores_of(name: str, order: str = "last", granularity: str = "linear"):
    return score_depth_only(Evidence(), named_layers(tiny_models.build(name), granularity), DepthOnly(order))  # type: ignore[arg-type]


def test_blocks_are_at_their_relative_depth() -> None:
    assert scores_of("llama", granularity="block").values == pytest.approx([1 / 6, 1 / 2, 5 / 6])
    assert scores_of("llama", "first", "block").values == pytest.approx([5 / 6, 1 / 2, 1 / 6])
    assert scores_of("llama", "middle", "block").values == pytest.approx([1 / 3, 1, 1 / 3])
    assert scores_of("llama", "ends", "block").values == pytest.approx([2 / 3, 0, 2 / 3])


def test_another_order_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"unknown depth_only order 'lasts'; did you mean 'last'"):
        scores_of("llama", "lasts")


def test_layers_lie_inside_their_block_and_others_at_the_ends() -> None:
    def layer(name: str, block: int | None) -> Layer:
        return Layer(name, block, name, (name,), 1)

    layers = [layer("in", None), layer("a", 0), layer("b", 0), layer("c", 1), layer("head", None)]
    assert relative_depths(layers).tolist() == [0, 1 / 8, 3 / 8, 3 / 4, 1]
    assert relative_depths([layer("a", None), layer("b", None)]).tolist() == [1 / 4, 3 / 4]


@pytest.mark.parametrize("name", ["llama", "deepseek-v3", "t5", "bert", "cifar-resnet"])
@pytest.mark.parametrize("order", ["last", "first"])
@pytest.mark.parametrize("amount", ["30%", "4"])
def test_its_top_is_what_the_depth_policy_chooses(name: str, order: str, amount: str) -> None:
    scores = scores_of(name, order, "conv" if name == "cifar-resnet" else "linear")
    assert select(scores, f"top:{amount}").names == select(scores.layers, f"{order}:{amount}").names
    assert len(np.unique(scores.values)) >= len(scores.layers) - 1  # BERT has two maps after its blocks
