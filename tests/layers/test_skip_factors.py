"""A skip at several factors from kept parts: the bits of plain forwards, and fewer modules that compute."""

import pytest
import torch
from torch import nn

from keylayers.layers.naming import named_layers
from keylayers.layers.prefix import block_outputs
from keylayers.layers.skip_factors import SkipFactors
from keylayers.layers.skips import scaled_skips
from keylayers.models.digits import DigitsResNet
from tests.layers.helpers import forward_batch, full_state, logits, same_state
from tests.layers.test_skips import Vision
from tests.tiny_models import ALL, build

FACTORS = (0.7, 0.0, 1.0, 0.3)


def assert_plain(model: nn.Module, batch: dict) -> None:
    layers, before = named_layers(model, "skip"), full_state(model)
    with torch.no_grad():
        with block_outputs(model, calls=False) as outputs:
            logits(model, batch)
        for layer in layers:
            kept = SkipFactors(model, layer, outputs)
            for factor in FACTORS:
                with kept.at(factor):
                    found = logits(model, batch)
                with scaled_skips(model, [layer], factor):
                    assert torch.equal(found, logits(model, batch)), (layer.name, factor)
    assert same_state(before, full_state(model))


@pytest.mark.parametrize("name", ALL)
def test_the_bits_are_those_of_plain_forwards(name: str) -> None:
    assert_plain(build(name), forward_batch(name))


def test_additions_and_rectifiers_in_place_do_not_spoil_what_was_kept() -> None:
    torch.manual_seed(0)
    assert_plain(Vision().eval(), {"images": torch.rand(2, 2, 9, 9)})


def test_a_hook_that_changes_an_output_acts_once_in_every_pass() -> None:
    torch.manual_seed(0)
    model = DigitsResNet().eval()
    model.layer2[0].conv1.register_forward_hook(lambda module, args, output: output * 0.5)
    model.layer2[0].shortcut.register_forward_hook(lambda module, args, output: output * 0.5)
    assert_plain(model, {"x": torch.rand(3, 1, 8, 8)})


def test_later_passes_compute_only_what_the_factor_reaches() -> None:
    torch.manual_seed(0)
    model, x = DigitsResNet().eval(), torch.rand(2, 1, 8, 8)
    layers, computed = named_layers(model, "skip"), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            own = module._conv_forward
            module._conv_forward = lambda *a, own=own, name=name: (computed.append(name), own(*a))[1]
    with torch.no_grad():
        with block_outputs(model, calls=False) as outputs:
            model(x)
        kept = SkipFactors(model, layers[3], outputs)
        for first in (True, False):
            computed.clear()
            with kept.at(0.5):
                model(x)
            branch = ["layer2.1.conv1", "layer2.1.conv2"] if first else []
            above = [f"layer3.{block}.{part}" for block, part in ((0, "conv1"), (0, "conv2"), (0, "shortcut.0"))]
            assert computed == ["conv1"] * first + branch + above + ["layer3.1.conv1", "layer3.1.conv2"]
