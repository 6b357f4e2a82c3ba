"""Cleansing a network that may hold a backdoor: the skip to silence is chosen from clean images, or a trigger of one's
own; nobody here knows an attacker's."""

from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
from torch import nn

from keylayers.actions.cleansing import Cleanse, cleanse
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.skip_suppression import SkipSuppression, score_skip_suppression
from keylayers.data.images import Images, load_images
from keylayers.errors import BadInput, worded
from keylayers.inputs.images import ImageInputs
from keylayers.inputs.networks import epochs_done, look_at, shown, store_network
from keylayers.layers.skips import example_for, skip_layers
from keylayers.measures.backdoor import check_target, predicted_classes
from keylayers.measures.objective import image_loss
from keylayers.models.pixels import image_argument
from keylayers.runs import Progress, RunFolder, note
from keylayers.scores import LayerScores, Selection
from keylayers.settings import Natural, Settings
from keylayers.training.planted_backdoor import batches, own_trigger, plant_backdoor, triggered

Calibration = Literal["clean-only", "own-trigger"]
TUNED = 0.7
"""Of the clean images; the rest tells what cleansing costs."""
TRAINING = "training"
"""Name of the loop whose state is kept."""
DEAR = 0.05
"""Clean accuracy whose loss is warned of."""


@dataclass(frozen=True)
class CleanseRequest(Settings):
    """What to cleanse, and how."""

    inputs: ImageInputs
    """The network and clean labelled images."""
    skip: str = "auto"
    """Name of a skip, or `auto`: the one that the calibration blames most."""
    calibration: Calibration = "clean-only"
    target: Natural = 0
    """Class of the trigger of one's own."""
    settings: Cleanse = field(default_factory=Cleanse)
    attacked: str | None = None
    """Images with an attacker's trigger and their true labels, to measure on alone; no choice sees them."""
    attack_target: Natural | None = None


@dataclass(frozen=True)
class CleanseResult:
    """What was done and what it costs."""

    skips: tuple[str, ...]
    scores: dict[str, float] | None
    """Of every skip; None where one was named."""
    figures: dict[str, tuple[float, float]]
    """Share of images, before and after: `clean accuracy`, and where attacked images were given `attack success`."""
    images: int
    """Held out, on which clean accuracy is measured."""
    trained: int
    untouched: int
    warnings: tuple[str, ...]
    """What it cost, where that is much."""


def cleanse_network(request: CleanseRequest, run: RunFolder) -> CleanseResult:
    """Chooses a skip, silences it, tunes around it, stores the weights and what must be silenced when they are loaded.

    Raises:
        BadInput: as the data, the criterion and the action do.
    """
    found = run.part("result", lambda: asdict(_cleansed(request, run)))
    run.checkpoint(TRAINING).clear()
    figures = {what: tuple(pair) for what, pair in found["figures"].items()}
    kept = {"skips": tuple(found["skips"]), "figures": figures, "warnings": tuple(found["warnings"])}
    return CleanseResult(**{**found, **kept})


def _cleansed(request: CleanseRequest, run: RunFolder) -> CleanseResult:
    model = request.inputs.load_model()
    tuned, held = request.inputs.parts(TUNED)
    look_at(model, tuned, request.inputs.model, request.inputs.seed)
    bad = None if request.attacked is None else _attacked(request, len(tuned.classes))
    before = _figures(model, held, bad, request.attack_target)
    x, y = tuned.tensors()
    layers = skip_layers(model, example_for(model, {image_argument(model): x[:1]}))
    scores = None if request.skip != "auto" else score_skips(model, tuned, request)
    name = request.skip if scores is None else scores.ranking()[0].name
    if scores is not None and np.sum(scores.values == scores.values.max()) > 1:
        note(f"several skips are blamed alike; a draw took {name}")
    selection = Selection.of(layers, names=[name], allow_total=True)
    keeps = run.checkpoint(TRAINING)
    with Progress[int](request.settings.training.epochs, "epochs", start=epochs_done(keeps)) as bar:
        made = cleanse(model, selection, x, y, request.settings, report=shown(bar), keeps=keeps)
    after = _figures(made.model, held, bad, request.attack_target)
    store_network(made.model, run.path / "cleansed.safetensors")
    return CleanseResult(
        made.skips,
        None if scores is None else {layer.name: float(v) for layer, v in zip(layers, scores.values, strict=True)},
        {what: (before[what], after[what]) for what in before},
        len(held),
        made.trained if request.settings.training.epochs else 0,
        made.untouched,
        _warnings(before["clean accuracy"] - after["clean accuracy"], len(held)),
    )


def _warnings(lost: float, images: int) -> tuple[str, ...]:
    if lost <= DEAR:
        return ()
    return (
        worded(
            f"clean accuracy fell by {100 * lost:.1f} points of {images} images; tune for longer (`epochs`), more of "
            "the network (`tune=all`), or at another rate (`learning_rate`), or turn the skip down less (`factor`)"
        ),
    )


def score_skips(model: nn.Module, clean: Images, request: CleanseRequest) -> LayerScores:
    """Scores of every skip, from clean images or from a trigger planted into a copy.

    Raises:
        BadInput: if none is to blame.
    """
    x, y = clean.tensors()
    key = image_argument(model)
    data = batches(x, y, key)
    if request.calibration == "own-trigger":
        trigger = own_trigger(x)
        model = plant_backdoor(model, x, y, trigger, request.target)
        data = triggered(x, y, trigger, request.target, key)
    evidence = Evidence(model=model, data=data, loss=image_loss, granularity="skip")
    layers = skip_layers(model, example_for(model, {key: x[:1]}))
    scores = score_skip_suppression(evidence, layers, SkipSuppression(request.calibration))
    if not scores.values.max() > 0:
        raise BadInput(
            f"by calibration {request.calibration} no skip is to blame: turning any one down changes nothing. Name one "
            "(`skip`), or take the other calibration."
        )
    return scores


def _attacked(request: CleanseRequest, classes: int) -> Images:
    """What only measures; looked at before the work, not after it."""
    assert request.attacked is not None and request.attack_target is not None
    images = load_images(request.attacked)
    check_target(request.attack_target, classes)
    if not (images.labels != request.attack_target).any():
        raise BadInput(
            f"{request.attacked}: all {len(images)} labels are {request.attack_target}, the class that the trigger "
            "brings; give the images their true labels, which say of whom it succeeds."
        )
    return images


def _figures(model: nn.Module, held: Images, bad: Images | None, target: int | None) -> dict[str, float]:
    x, y = held.tensors()
    found = {"clean accuracy": float((predicted_classes(model, x) == y).float().mean())}
    if bad is not None and target is not None:
        x, y = bad.tensors()
        others = y != target
        found["attack success"] = float((predicted_classes(model, x[others]) == target).float().mean())
    return found
