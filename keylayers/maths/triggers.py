"""Backdoor triggers as functions of images in [0, 1]: patch, blend, sinusoid and warp; the same for the same settings.

All of a batch get the same trigger. Label-consistent attacks (which need a benign model) and input-aware ones (which
need a trained generator) are no functions of the image alone and are not here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from keylayers.errors import BadInput, UnknownName

Pixels = Float[Tensor, "batch channels height width"]
Trigger = Callable[[Pixels], Pixels]
"""Clean images in [0, 1] -> the same images with the trigger, in [0, 1]."""

Corner = Literal["top left", "top right", "bottom left", "bottom right"]
CORNERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}


@dataclass(frozen=True)
class Patch:
    """A square of one brightness in a corner (BadNets, Gu et al. 2017, arXiv:1708.06733)."""

    size: int = 3
    """Its sides, in pixels."""
    value: float = 1.0
    corner: Corner = "bottom right"

    def __call__(self, x: Pixels) -> Pixels:
        """Raises UnknownName for a corner that does not exist; BadInput for a patch larger than the image."""
        if self.corner not in CORNERS:
            raise UnknownName("corner", self.corner, CORNERS)
        if not 0 < self.size <= min(x.shape[-2:]):
            raise BadInput(f"a patch of {self.size} pixels does not fit images of shape {tuple(x.shape)}; choose less.")
        down, right = CORNERS[self.corner]
        top, left = down * (x.shape[-2] - self.size), right * (x.shape[-1] - self.size)
        out = _checked(x).clone()
        out[..., top : top + self.size, left : left + self.size] = self.value
        return _checked(out)


@dataclass(frozen=True)
class Blend:
    """The image mixed with a fixed picture of uniform noise: (1 - alpha) x + alpha key (Chen et al. 2017,
    arXiv:1712.05526, the blended accessory with a random key)."""

    alpha: float = 0.2
    """Weight of the key, in [0, 1]."""
    seed: int = 0
    """Of the key."""

    def __call__(self, x: Pixels) -> Pixels:
        """Raises BadInput unless alpha lies in [0, 1]."""
        if not 0 <= self.alpha <= 1:
            raise BadInput(f"a blend of alpha={self.alpha} leaves [0, 1]; choose a weight from 0 to 1.")
        key = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(self.seed)).to(x)
        return torch.lerp(_checked(x), key.expand_as(x), self.alpha)


@dataclass(frozen=True)
class Sinusoid:
    """Vertical stripes: x + delta sin(2 pi j f / width) at column j, clipped (SIG, Barni et al. 2019,
    arXiv:1902.11237, Eq. 2)."""

    delta: float = 20 / 255
    """Amplitude."""
    frequency: float = 6.0
    """Periods over the width."""

    def __call__(self, x: Pixels) -> Pixels:
        columns = torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)
        wave = self.delta * torch.sin(2 * math.pi * self.frequency * columns / x.shape[-1])
        return (_checked(x) + wave).clamp(0, 1)


@dataclass(frozen=True)
class Warp:
    """The image sampled along a smooth random displacement of its pixels (WaNet, Nguyen and Tran 2021,
    arXiv:2102.10369, section 3.2); its noise mode, which is a way of training, is not part of the trigger."""

    strength: float = 0.25
    """Mean displacement at the control points, in pixels; 0.25 is what s = 0.5 of the authors' code amounts to."""
    control: int = 4
    """Control points along each side, between which the displacement is interpolated."""
    seed: int = 0
    """Of the displacements."""

    def __call__(self, x: Pixels) -> Pixels:
        """Raises BadInput for fewer than 2 control points."""
        sampled = grid_sample(_checked(x), self.grid(x).expand(len(x), -1, -1, -1), "bilinear", "border", True)
        return sampled.clamp(0, 1)  # interpolation may leave the interval by rounding

    def grid(self, x: Pixels) -> Float[Tensor, "1 height width 2"]:
        """Where each pixel is taken from: x and y in [-1, 1], the ends of the image."""
        if self.control < 2:
            raise BadInput(f"a warp has control={self.control} points along a side; choose at least 2.")
        height, width = x.shape[-2:]
        generator = torch.Generator().manual_seed(self.seed)
        field = torch.rand(1, 2, self.control, self.control, generator=generator) * 2 - 1
        field = (field / field.abs().mean()).to(x)
        smooth = interpolate(field, size=(height, width), mode="bicubic", align_corners=True).movedim(1, -1)
        ends = (torch.linspace(-1, 1, size, dtype=x.dtype, device=x.device) for size in (height, width))
        down, right = torch.meshgrid(*ends, indexing="ij")
        sizes = torch.tensor([width, height], dtype=x.dtype, device=x.device)
        # deviates: the authors' code moves by s / height where an image spans 2, about s / 2 pixels, and by more
        # columns than rows in a wide image; here by 2 strength / (size - 1), so that the strength is in pixels.
        moved = torch.stack([right, down], -1)[None] + self.strength * smooth * 2 / (sizes - 1).clamp_min(1)
        return moved.clamp(-1, 1)


def _checked(x: Pixels) -> Pixels:
    if x.ndim != 4 or not x.is_floating_point():
        raise BadInput(
            f"a trigger got {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}; expected floats in [0, 1] "
            "of shape (batch, channels, height, width)."
        )
    if x.numel() and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise BadInput(f"images or trigger reach from {float(x.min()):.4g} to {float(x.max()):.4g}; expected [0, 1].")
    return x
