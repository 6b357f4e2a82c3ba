"""A network's answers given again: what a screen says of a replay is what it says of the network itself."""

import numpy as np
import pytest
import torch

from keylayers.actions.screen_fitting import fit_screen
from keylayers.data.images import DIGITS, load_images, part_images
from keylayers.errors import UnknownName
from keylayers.layers.naming import named_layers
from keylayers.measures.features import features_of
from keylayers.measures.replay import replay_of
from keylayers.models.digits import digits_resnet
from keylayers.scores import select


@pytest.fixture(scope="module")
def parts():
    found = part_images(load_images(DIGITS), {"train": 1, "reference": 300, "calibration": 100, "test": 90}, 0)
    return [list(getattr(found, name).batches(64)) for name in ("reference", "calibration", "test")]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return digits_resnet().eval()


def test_a_screen_of_the_replay_is_that_of_the_network(network, parts):
    layers = named_layers(network, "block")
    names = [*(layer.name for layer in layers), named_layers(network, "linear")[-1].name]
    replay, again = replay_of(network, names, *parts)
    assert [len(part) for part in again] == [len(part) for part in parts]
    for policy in ("last:1", "last:3"):
        screens = [
            fit_screen(model, select(layers, policy), *data[:2]) for model, data in ((network, parts), (replay, again))
        ]
        for batch, held in zip(parts[2], again[2], strict=True):
            one, other = screens[0].screened(network, batch), screens[1].screened(replay, held)
            np.testing.assert_array_equal(one.classes, other.classes)
            np.testing.assert_allclose(one.suspicion, other.suspicion, rtol=1e-6)
            np.testing.assert_array_equal(one.flags, other.flags)


def test_features_and_logits_are_those_of_the_network_bit_for_bit(network, parts):
    names = [layer.name for layer in named_layers(network, "block")]
    replay, again = replay_of(network, names, parts[2])
    with torch.no_grad():
        for batch, held in zip(parts[2], again[0], strict=True):
            (rows, logits), (kept, kept_logits) = features_of(network, batch, names), features_of(replay, held, names)
            assert torch.equal(logits, kept_logits) and all(torch.equal(rows[name], kept[name]) for name in names)
            assert torch.equal(batch["labels"], held["labels"])


def test_a_layer_that_is_not_there_is_named(network, parts):
    with pytest.raises(UnknownName, match="layer9"):
        replay_of(network, ["layer9"], parts[2])
