"""Normalisation put inside a network of images that lacks it, so that it takes pixels in [0, 1] as ours do."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from keylayers.errors import BadInput
from keylayers.models.pixels import checked_pixels


def normalise_inside(model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> RemovableHandle:
    """Makes the network take images in [0, 1], of which it sees (x - mean) / std by channel; `.remove()` undoes it.

    A hook in front of the forward pass: names, weights and what is saved stay as they are. An attack's radius is then
    measured in the units of [0, 1].

    Raises:
        BadInput: for other numbers of means and deviations, or a deviation of 0; at the forward pass, for images
            outside [0, 1] or of another number of channels.
    """
    if len(mean) != len(std) or not all(value > 0 for value in std):
        raise BadInput(f"mean {list(mean)} and std {list(std)}: expected one of each per channel, every std above 0.")
    centre, spread = (torch.tensor(list(values)).view(1, -1, 1, 1) for values in (mean, std))

    def normalised(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim != 4:
            return value
        checked_pixels(value, len(mean))
        return (value - centre.to(value)) / spread.to(value)

    def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return tuple(map(normalised, args)), {key: normalised(value) for key, value in kwargs.items()}

    return model.register_forward_pre_hook(before, with_kwargs=True)
