"""Triggers against closed forms and pixel-by-pixel definitions."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from keylayers.errors import BadInput, UnknownName
from keylayers.maths.triggers import CORNERS, Blend, Patch, Sinusoid, Warp

ALL = [Patch(2), Blend(), Sinusoid(), Warp()]


def pictures(batch: int = 3, channels: int = 3, height: int = 9, width: int = 7) -> torch.Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("trigger", ALL, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_triggers_repeat_stay_in_the_interval_and_leave_the_images_alone(trigger, dtype) -> None:
    for channels, height, width in ((1, 8, 8), (3, 32, 32), (3, 9, 7)):
        x = pictures(4, channels, height, width).to(dtype)
        x[0], x[1] = 0.0, 1.0
        before, state = x.clone(), torch.get_rng_state()
        out = trigger(x)
        assert out.shape == x.shape and out.dtype == dtype and float(out.min()) >= 0 and float(out.max()) <= 1
        assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)
        assert torch.equal(out, trigger(x)) and torch.equal(out[2:3], trigger(x[2:3]))
        assert not torch.equal(out[2], x[2])


@pytest.mark.parametrize("corner", CORNERS)
def test_a_patch_is_where_it_should_be_and_nowhere_else(corner: str) -> None:
    x = pictures()
    rows = (0, 1) if corner.startswith("top") else (7, 8)
    columns = (0, 1) if corner.endswith("left") else (5, 6)
    truth = x.clone()
    for row in rows:
        for column in columns:
            truth[:, :, row, column] = 0.25
    assert torch.equal(Patch(2, 0.25, corner)(x), truth)
    assert Patch(7)(x)[..., 2:, :].eq(1).all()


def test_a_blend_is_linear_in_its_weight_and_ends_in_the_key() -> None:
    x = pictures()
    key = Blend(1.0, seed=7)(x)
    assert torch.equal(key[0], key[1]) and torch.equal(key[0], Blend(1.0, seed=7)(1 - x)[0])
    assert torch.allclose(Blend(0.3, seed=7)(x), 0.7 * x + 0.3 * key, atol=1e-7)
    assert torch.equal(Blend(0.0)(x), x) and not torch.equal(key, Blend(1.0, seed=8)(x))
    assert 0.4 < float(key[0].mean()) < 0.6  # uniform


def test_a_sinusoid_is_the_published_formula() -> None:
    x = 0.5 * torch.ones(1, 1, 2, 12)
    out = Sinusoid(0.1, 3)(x)
    for column in range(12):
        assert float(out[0, 0, 1, column]) == pytest.approx(
            0.5 + 0.1 * math.sin(2 * math.pi * 3 * column / 12), abs=1e-6
        )
    dark = Sinusoid(0.1, 3)(torch.zeros(1, 1, 1, 12))
    assert float(dark.min()) == 0 and float(dark.max()) == pytest.approx(0.1)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (11, 6)])
def test_a_warp_takes_each_pixel_from_where_its_grid_says(height: int, width: int) -> None:
    x, warp = pictures(1, 2, height, width).double(), Warp(1.5, 3, seed=2)
    grid = warp.grid(x)[0].numpy()
    places = np.stack([(grid[..., 1] + 1) / 2 * (height - 1), (grid[..., 0] + 1) / 2 * (width - 1)])
    for channel in range(2):
        truth = map_coordinates(x[0, channel].numpy(), places, order=1, mode="nearest")
        np.testing.assert_allclose(warp(x)[0, channel].numpy(), truth, atol=1e-9)


def test_a_warp_of_no_strength_is_the_image_and_its_strength_is_in_pixels() -> None:
    x = pictures(2, 1, 21, 33).double()
    assert torch.allclose(Warp(0.0)(x), x, atol=1e-9)
    warp = Warp(0.75, 3, seed=1)
    straight = Warp(0.0, 3).grid(x)
    moved = (warp.grid(x) - straight) / 2 * torch.tensor([32.0, 20.0])
    inner = moved[0, 10, 16].abs()  # the middle is a control point, and none is clipped there
    field = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert torch.allclose(inner, (0.75 * field / field.abs().mean())[0, :, 1, 1].abs().double(), atol=1e-6)


def test_a_warp_of_a_flat_image_is_invisible() -> None:
    assert torch.allclose(Warp(3.0)(torch.full((1, 3, 8, 8), 0.3)), torch.tensor(0.3), atol=1e-6)


@pytest.mark.parametrize(
    ("trigger", "error", "message"),
    [
        (Patch(8), BadInput, r"a patch of 8 pixels does not fit images of shape \(3, 3, 9, 7\)"),
        (Patch(2, 1.5), BadInput, "reach from .* to 1.5"),
        (Patch(2, 1.0, "botom right"), UnknownName, "did you mean 'bottom right'"),
        (Blend(1.2), BadInput, r"alpha=1\.2"),
        (Warp(control=1), BadInput, "control=1"),
    ],
)
def test_impossible_triggers_are_refused(trigger, error, message) -> None:
    with pytest.raises(error, match=message):
        trigger(pictures())


@pytest.mark.parametrize("trigger", ALL, ids=lambda one: type(one).__name__)
def test_images_outside_the_interval_are_refused(trigger) -> None:
    with pytest.raises(BadInput, match=r"reach from .*; expected \[0, 1\]"):
        trigger(pictures() * 2)
    with pytest.raises(BadInput, match="uint8 of shape"):
        trigger((pictures() * 255).byte())
