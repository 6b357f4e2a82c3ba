"""From what a user names (a network, images) to what criteria and actions of images take."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from keylayers.data.images import Images, load_images
from keylayers.errors import BadInput
from keylayers.models.loading import LoadedModel, is_factory, load_model
from keylayers.models.normalised import normalise_inside
from keylayers.runs import note

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
"""Files of a checkpoint that state the normalisation; the second under `image_processor`, where it has that."""


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

        Raises:
            BadInput: as `load_model` does, or if a preprocessor's file cannot be read.
        """
        loaded = load_model(self.model, weights=self.weights)
        if not is_factory(self.model):
            _normalise(loaded)
        return loaded.model

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


def _normalise(loaded: LoadedModel) -> None:
    stated = preprocessing(loaded)
    if "image_mean" in stated and "image_std" in stated:
        if stated.get("do_normalize", True):
            normalise_inside(loaded.model, stated["image_mean"], stated["image_std"])
    elif stated.get("do_normalize", True):
        note(
            f"{loaded.source}: no {PREPROCESSOR} was found that states a mean and a deviation, so the network gets "
            "pixels in [0, 1] as they are; if it was trained on normalised ones, put that file beside its weights."
        )


def preprocessing(loaded: LoadedModel) -> dict[str, Any]:
    """What a checkpoint's preprocessor states, in a folder or on the hub as its weights are; empty where it has none.

    Raises:
        BadInput: for a file that cannot be had or read.
    """
    from transformers.utils import cached_file

    place = loaded.source if loaded.folder is None else loaded.folder
    for name in (PROCESSOR, PREPROCESSOR):
        try:
            file = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
            stated = {} if file is None else json.loads(Path(file).read_text())
        except (OSError, ValueError) as error:
            raise BadInput(
                f"cannot read {name} of {loaded.source!r} ({error}); it says how images are normalised."
            ) from error
        if own := stated.get("image_processor") if name == PROCESSOR else stated:
            return dict(own)
    return {}


def example_of(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any] | None:
    """A batch to find layers with, in the order they run, where the network does not say what it takes."""
    if hasattr(model, "config") or hasattr(model, "dummy_inputs"):
        return None
    return {key: value for key, value in batch.items() if key != "labels"}
