"""Screening a stream of images: a screen fitted on clean ones, at the layers where classes come together."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from keylayers.actions.screen_fitting import fit_screen
from keylayers.actions.screening import Screen, ScreenSettings, save_screen
from keylayers.criteria.class_separation import layers_of_interest, score_class_separation
from keylayers.criteria.protocol import Evidence
from keylayers.data.images import load_pixels
from keylayers.errors import BadInput
from keylayers.inputs.images import ImageInputs, example_of
from keylayers.inputs.networks import look_at
from keylayers.layers.naming import named_layers
from keylayers.measures.objective import image_loss
from keylayers.models.pixels import image_argument
from keylayers.runs import Progress, RunFolder
from keylayers.scores import Selection, select

AUTO = "auto"
REFERENCE = 0.6
"""Of the clean images; the rest calibrates a conformal threshold."""
SIZE = 128  # images of a batch


@dataclass(frozen=True)
class ScreenRequest:
    """What to watch, and how."""

    inputs: ImageInputs
    """The network and clean labelled images."""
    stream: str
    """Images to judge."""
    layers: str = AUTO
    """`auto`: each class's layers of interest; else a policy over blocks, such as `last:1`."""
    settings: ScreenSettings = field(default_factory=ScreenSettings)


@dataclass(frozen=True)
class ScreenResult:
    """What was found in the stream."""

    flags: tuple[int, ...]
    """Places of the images to reject."""
    images: int
    promise: str
    """What is known of the rate of false alarms."""
    layers: tuple[str, ...]
    figures: dict[str, Any]
    """Per image: predicted class, suspicion, flag."""


def screen_stream(request: ScreenRequest, run: RunFolder) -> ScreenResult:
    """Fits the screen, stores it in the run folder, judges the stream.

    Raises:
        BadInput: as the data, the criterion and the action do.
    """
    pixels = load_pixels(request.stream)
    model = request.inputs.load_model()
    key = image_argument(model)
    conformal = request.settings.threshold == "conformal"  # tau is no quantile, and needs no images apart
    parts = request.inputs.parts(REFERENCE) if conformal else request.inputs.parts()
    if pixels.shape[1:] != parts[0].pixels.shape[1:]:
        raise BadInput(
            f"{request.stream} holds images of shape {pixels.shape[1:]} and {request.inputs.images} of "
            f"{parts[0].pixels.shape[1:]} (channels, height, width); expected the same."
        )
    look_at(model, parts[0], request.inputs.model, request.inputs.seed)
    reference, *others = (list(part.batches(SIZE, key)) for part in parts)
    blocks = named_layers(model, "block", example=example_of(model, reference[0]))
    chosen: Selection | dict[int, Selection]
    if request.layers == AUTO:
        evidence = Evidence(model=model, data=reference, loss=image_loss, granularity="block")
        chosen = layers_of_interest(score_class_separation(evidence, blocks))
    else:
        chosen = select(blocks, request.layers)
    screen = fit_screen(model, chosen, reference, others[0] if others else None, request.settings)
    save_screen(screen, run.path / "screen.safetensors")
    found = _judged(screen, model, pixels)
    return ScreenResult(
        tuple(np.flatnonzero(found["flagged"]).tolist()),
        len(pixels),
        screen.promise,
        screen.layers,
        {name: values.tolist() for name, values in found.items()},
    )


def _judged(screen: Screen, model: nn.Module, pixels: np.ndarray) -> dict[str, np.ndarray]:
    key = image_argument(model)
    batches = (
        {key: torch.from_numpy(pixels[start : start + SIZE].astype(np.float32)) / 255}
        for start in Progress(range(0, len(pixels), SIZE), "screening")
    )
    seen = list(screen.stream(model, batches))
    names = {"class": "classes", "suspicion": "suspicion", "flagged": "flags"}
    return {name: np.concatenate([getattr(one, what) for one in seen]) for name, what in names.items()}
