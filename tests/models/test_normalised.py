"""Normalisation inside a network that lacks it: the same numbers as outside, and pixels are still checked."""

import pytest
import torch
from torch import nn

from keylayers.errors import BadInput
from keylayers.models.normalised import normalise_inside


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())


def test_it_is_what_was_done_outside_and_can_be_taken_away():
    model, x = network(), torch.rand(2, 3, 8, 8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 1.0, 2.0]).view(1, 3, 1, 1)
    outside, plain, names = model((x - mean) / std), model(x), list(model.state_dict())
    handle = normalise_inside(model, [0.1, 0.2, 0.3], [0.5, 1.0, 2.0])
    torch.testing.assert_close(model(x), outside)
    assert list(model.state_dict()) == names
    handle.remove()
    assert torch.equal(model(x), plain)


def test_what_does_not_fit_is_told():
    model = network()
    with pytest.raises(BadInput, match="expected one of each per channel"):
        normalise_inside(model, [0.1], [0.0])
    normalise_inside(model, [0.1] * 3, [0.5] * 3)
    with pytest.raises(BadInput, match=r"expected \[0, 1\]"):
        model(torch.rand(1, 3, 8, 8) * 2 + 1)
    with pytest.raises(BadInput, match="expected \\(batch, 3"):
        model(torch.rand(1, 1, 8, 8))
