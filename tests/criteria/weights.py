"""Weights for tests of the weight-only criteria: one layer per tensor, no model."""

import torch
from torch import Tensor

from keylayers.layers.layer import Layer
from keylayers.layers.tensors import TensorSource


def held(tensors: dict[str, Tensor]) -> TensorSource:
    return TensorSource(
        {name: lambda one=one: one for name, one in tensors.items()},
        {name: tuple(one.shape) for name, one in tensors.items()},
        "a test",
    )


def layers_of(tensors: dict[str, Tensor]) -> list[Layer]:
    return [Layer(name, None, name, (name,), one.numel()) for name, one in tensors.items()]


def scrambled(rows: int, columns: int) -> Tensor:
    """A matrix that looks random and needs no generator, so that other programs can make the same."""
    i, j = (torch.arange(1, count + 1, dtype=torch.float64) for count in (rows, columns))
    waves = torch.sin(12.9898 * i[:, None] + 78.233 * j * (i[:, None] + 1)) * 43758.5453
    return (waves - waves.floor() - 0.5).float()
