"""Images as our vision networks take them: floats in [0, 1], normalised inside the network and nowhere else."""

import inspect

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.suppressed import Suppressed


def checked_pixels(x: Float[Tensor, "batch channels height width"], channels: int | None = None) -> Tensor:
    """The images themselves, if they are floats in [0, 1] with that many channels; shapes alone on the meta device.

    Normalisation outside the network is the commonest error of robustness studies: an attack's radius is then measured
    in other units, and clipping to [0, 1] cuts half the image away. So it is refused here, where it shows.

    Raises:
        BadInput: for another number of axes or channels, integers, or a value outside [0, 1] or NaN.
    """
    if x.ndim != 4 or (channels is not None and x.shape[1] != channels):
        wanted = "channels" if channels is None else str(channels)
        raise BadInput(
            f"images have shape {tuple(x.shape)}; expected (batch, {wanted}, height, width). Grey images need "
            "their axis of one channel, and pixels with channels last need x.permute(0, 3, 1, 2)."
        )
    if not x.is_floating_point():
        raise BadInput(f"images are {str(x.dtype).removeprefix('torch.')}; divide by 255 to have floats in [0, 1].")
    if x.is_meta or x.numel() == 0 or torch.compiler.is_compiling():
        return x
    low, high = (float(end) for end in x.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise BadInput(
            f"images reach from {low:.4g} to {high:.4g}; expected [0, 1]. The network normalises them itself: give it "
            "x / 255, without subtracting a mean, and clip to [0, 1] after noise or an attack."
        )
    return x


def image_argument(model: nn.Module) -> str:
    """Name of the argument that takes images: the one that a Hugging Face model states, else the first; of a suppressed
    network, that of the one inside."""
    if isinstance(model, Suppressed):
        return image_argument(model.innermost)
    names = inspect.signature(model.forward).parameters.values()
    first = next((one.name for one in names if one.kind is one.POSITIONAL_OR_KEYWORD), "x")
    return str(getattr(model, "main_input_name", first))
