"""From what a user names (a network, images) to what criteria and actions of images take."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from keylayers.data.images import Images, load_images
from keylayers.errors import BadInput
from keylayers.inputs.networks import load_network
from keylayers.runs import note
from keylayers.settings import Seed, Settings


@dataclass(frozen=True)
class ImageInputs(Settings):
    """A network and labelled images as the user named them."""

    model: str
    images: str
    weights: str | None = None
    """Safetensors for a factory's network, or over a checkpoint's own."""
    seed: Seed = 0
    """Of which image goes to which part, and of weights that a factory draws."""

    def load_model(self) -> nn.Module:
        """The network, as `load_network` has it. Raises BadInput as that does."""
        return load_network(self.model, self.weights, self.seed).model

    def parts(self, *shares: float) -> tuple[Images, ...]:
        """Disjoint parts of the images by share, and the rest as the last; drawn with the seed.

        Where the file has a test part of its own (`x_test`), that is the last part, and the shares are scaled to fill
        the rest: a network may have been trained on it. Of equal images one is kept, the rest's after the test part's,
        so that no two parts hold the same one.

        Raises:
            BadInput: as `load_images` does, or if a part would be empty.
        """
        images = _distinct(load_images(self.images))
        order = np.random.default_rng(self.seed).permutation(len(images))
        ends = np.cumsum(shares)
        if images.own_test is not None and shares:
            held = images.index[order] >= images.own_test
            order, ends = np.concatenate([order[~held], order[held]]), ends / ends[-1] * (~held).mean()
        places = np.split(order, np.round(ends * len(images)).astype(int))
        if not all(map(len, places)):
            raise BadInput(
                f"{self.images} has {len(images)} images, too few for parts of {', '.join(f'{s:.0%}' for s in shares)} "
                "and a rest; give more."
            )
        return tuple(images.take(np.sort(each)) for each in places)


def _distinct(images: Images) -> Images:
    """One of each; those of a test part of its own stay."""
    order = np.arange(len(images))[::-1]  # a test part stands at the end
    _, first = np.unique([images.pixels[place].tobytes() for place in order], return_index=True)
    if len(first) < len(images):
        more = len(images) - len(first)
        note(f"{images.source}: {more} of {len(images)} images are copies of others in it; one of each is used.")
    return images.take(np.sort(order[first]))


def example_of(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any] | None:
    """A batch to find layers with, in the order they run, where the network does not say what it takes."""
    if hasattr(model, "config") or hasattr(model, "dummy_inputs"):
        return None
    return {key: value for key, value in batch.items() if key != "labels"}
