"""From what a user names (a network, images) to what criteria and actions of images take."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from keylayers.data.images import Images, load_images
from keylayers.errors import BadInput
from keylayers.models.loading import load_model
from keylayers.models.normalised import normalise_inside

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class ImageInputs:
    """A network and labelled images as the user named them."""

    model: str
    images: str
    weights: str | None = None
    """Safetensors for a model given as package.module:factory."""
    seed: int = 0
    """Of which image goes to which part."""

    def load_model(self) -> nn.Module:
        """The network, in eval mode, taking images in [0, 1].

        A Hugging Face checkpoint is normalised inside by what its preprocessor says; another network must do so itself.
        """
        model = load_model(self.model, weights=self.weights).model
        file = Path(self.model) / PREPROCESSOR
        if file.is_file():
            stated = json.loads(file.read_text())
            if stated.get("do_normalize", True) and "image_mean" in stated:
                normalise_inside(model, stated["image_mean"], stated["image_std"])
        return model

    def parts(self, *shares: float) -> tuple[Images, ...]:
        """Disjoint parts of the images by share, and the rest as the last; drawn with the seed.

        Raises:
            BadInput: as `load_images` does, or if a part would be empty.
        """
        images = load_images(self.images)
        order = np.random.default_rng(self.seed).permutation(len(images))
        ends = np.cumsum([round(share * len(images)) for share in shares])
        places = np.split(order, ends)
        if not all(map(len, places)):
            raise BadInput(
                f"{self.images} has {len(images)} images, too few for parts of {', '.join(f'{s:.0%}' for s in shares)} "
                "and a rest; give more."
            )
        return tuple(images.take(np.sort(each)) for each in places)
