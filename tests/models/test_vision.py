"""The networks of images: what they take, and that the small one learns; the published weights where they are."""

import os
from pathlib import Path

import pytest
import torch

from keylayers.data.images import load_images, part_images
from keylayers.errors import BadInput
from keylayers.layers.naming import named_layers
from keylayers.models import load_model
from keylayers.models.cifar import resnet20
from keylayers.models.digits import DigitsResNet, digits_resnet
from keylayers.training.images import ImageTraining, train_images

NETS = {"cifar": (resnet20, 3, 32), "digits": (digits_resnet, 1, 8)}
PUBLISHED = Path(os.environ.get("KEYLAYERS_DATA", "absent")).parent / "models" / "resnet_cifar10"


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 2 - 1, r"images reach from -.* to .*; expected \[0, 1\].*normalises them itself"),
        (lambda x: x * 1.1, r"to 1\.\d+; expected \[0, 1\]"),
        (lambda x: torch.where(x == x.max(), torch.nan, x), "from nan"),
        (lambda x: (x * 255).byte(), "images are uint8; divide by 255"),
        (lambda x: x[:, 0], r"have shape \(2, \d+, \d+\); expected \(batch, \d, height, width\)"),
        (lambda x: x.repeat(1, 2, 1, 1), r"have shape \(2, [26], .*expected \(batch, [13], height"),
    ],
)
def test_images_that_are_not_in_the_unit_interval_or_of_other_channels_are_refused(name, change, message) -> None:
    make, channels, size = NETS[name]
    x = torch.rand(2, channels, size, size)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0.0, 1.0  # the ends belong to it
    model = make().eval()
    assert model(x).shape == (2, 10)
    with pytest.raises(BadInput, match=message):
        model(change(x))


def test_the_small_network_learns_the_digits_in_seconds() -> None:
    parts = part_images(
        load_images("bundled:digits"), {"train": 500, "reference": 50, "calibration": 50, "test": 400}, seed=1
    )
    torch.manual_seed(0)
    model = DigitsResNet(1, (8, 16, 16))
    before = torch.get_rng_state()
    losses = train_images(model, *parts.train.tensors(), ImageTraining(epochs=6, batch_size=50))
    assert torch.equal(before, torch.get_rng_state()) and not model.training
    x, y = parts.test.tensors()
    with torch.no_grad():
        assert float((model(x).argmax(1) == y).float().mean()) > 0.9
    assert losses[-1] < losses[0] / 3


def test_a_training_repeats_itself_and_frozen_parts_keep_their_statistics() -> None:
    images = load_images("bundled:digits")
    x, y = (part[:60] for part in images.tensors())
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        model = DigitsResNet(1, (4, 8, 8))
        model.layer1.requires_grad_(False)
        start = {name: one.clone() for name, one in model.layer1.state_dict().items()}
        train_images(model, x, y, ImageTraining(epochs=1, batch_size=20))
        assert all(torch.equal(start[name], one) for name, one in model.layer1.state_dict().items())
        states.append(model.state_dict())
    assert all(torch.equal(one, states[1][name]) for name, one in states[0].items())


@pytest.mark.parametrize("given", [(0, 0), (4, 3)])
def test_a_training_on_nothing_is_refused(given) -> None:
    with pytest.raises(BadInput, match=r"training got .* images"):
        train_images(digits_resnet(), torch.rand(given[0], 1, 8, 8), torch.zeros(given[1], dtype=torch.long))


def test_own_networks_are_listed_in_the_order_they_compute() -> None:
    """Their `dummy_inputs` stand in for an example, so the projection comes after the convolutions of its block."""
    kinds = [layer.kind for layer in named_layers(digits_resnet(), "conv") if layer.block == 2]
    assert kinds == ["conv1", "conv2", "shortcut.0"]


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published CIFAR weights are not beside $KEYLAYERS_DATA")
@pytest.mark.parametrize("depth", [20, 32, 56])
def test_published_weights_know_their_training_images(depth: int) -> None:
    weights = str(PUBLISHED / f"resnet{depth}.safetensors")
    model = load_model(f"keylayers.models.cifar:resnet{depth}", weights=weights).model
    stored = load_images(PUBLISHED.parent.parent / "data" / "vision" / "cifar10_train_lossless_4k.npz")
    x, y = stored.take(slice(0, 100)).tensors()
    with torch.no_grad():
        assert float((model(x).argmax(1) == y).float().mean()) >= 0.99
