"""Weights through NF4 and back: what bitsandbytes stores, undone exactly."""

import pytest
import torch
from bitsandbytes.functional import get_4bit_type

from keylayers.layers.naming import named_layers
from keylayers.training.nf4 import BLOCK, through_nf4
from tests.tiny_models import build


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_matrices_take_the_nearest_of_sixteen_values_per_block_and_come_back_exactly(name):
    model = build(name)
    layers = [layer for layer in named_layers(model, "linear") if layer.block is not None]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    changed = {parameter for layer in layers for parameter in layer.parameters if before[parameter].ndim == 2}
    levels = get_4bit_type("nf4", device="cpu")
    with through_nf4(model, layers):
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key]) == (key not in changed), key
        for key in changed:
            blocks = before[key].flatten().split(BLOCK)
            for exact, stored in zip(blocks, model.state_dict()[key].flatten().split(BLOCK), strict=True):
                scale = exact.abs().max()
                nearest = levels[(exact[:, None] / scale - levels).abs().argmin(1)] * scale
                assert (stored - nearest).abs().max() < 0.02 * scale  # the scale itself is kept in 8 bits
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
