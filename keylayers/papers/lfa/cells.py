"""What the cells of the screening study compute: how well each choice of layers tells poisoned images apart."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from keylayers.actions.screen_fitting import fit_screen
from keylayers.actions.screening import Screen, ScreenSettings
from keylayers.criteria.class_separation import ClassSeparation, layers_of_interest, score_class_separation
from keylayers.criteria.protocol import Evidence
from keylayers.data.images import Images
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.measures.detection import rate_detection
from keylayers.measures.objective import Batch, image_loss
from keylayers.measures.replay import replay_of
from keylayers.runs.quiet import quiet_libraries
from keylayers.scores import LayerScores, Selection, select
from keylayers.studies.image_task import ImageTask
from keylayers.studies.image_victims import Backdoor, make_victim, victim

SIZE = 128  # images of a batch
TAU = 2.5  # recommended by the paper
ALPHA = 0.05  # false alarms that a conformal threshold admits

OURS, ENTERING, PUBLISHED = "layers of interest", "layers of interest, weighed as entered", "as published"
LAST, EVERY, LEAST = "last block", "all blocks", "least separating block"
ALONE = "block {0} alone"

EVERYONE = "every class"

Chosen = Selection | Mapping[int, Selection]


def arms(scores: LayerScores, released: LayerScores) -> dict[str, tuple[Chosen, ScreenSettings]]:
    """Every choice of layers, with how its screen is fitted.

    `released`: scores of predicted classes and centroids that a record is part of, as the authors' code has them, over
    the blocks and the logits.
    """
    # deviates: paper takes the logits for a last layer, so that the last block has a weight; here only in `as
    # published`, because the other arms choose among blocks; where the last of them is of interest, it weighs 0.
    # deviates: released code stops with an error where the logits are of interest; here they weigh 0, because nothing
    # follows them.
    ours = ScreenSettings(alpha=ALPHA)
    theirs = ScreenSettings(alpha=ALPHA, leave_one_out=False)
    layers = scores.layers
    return {
        OURS: (layers_of_interest(scores), ours),
        ENTERING: (layers_of_interest(scores, weights="entering"), ours),
        PUBLISHED: (layers_of_interest(released, weights="released", clamped=False, stem=True), theirs),
        LAST: (select(layers, "last:1"), ours),
        EVERY: (Selection.of(layers, names=[layer.name for layer in layers], allow_total=True), ours),
        LEAST: (select(scores, "bottom:1"), ours),
        **{ALONE.format(layer.block): (Selection.of(layers, names=[layer.name]), ours) for layer in layers},
    }


def screens(
    folder: Path, *, task: Mapping[str, Any], seed: int, attack: Mapping[str, Any] | None, file: str
) -> dict[str, Any]:
    """Screens of a stored model, by choice of layers, judged on its test images; none of the choices sees a trigger.

    Without an attack, what is told apart are a clean model's clean images from the same with a patch that it never saw.
    """
    own, how = ImageTask.of(task), None if attack is None else Backdoor(**attack)
    found = victim(folder, own, seed, how, file)
    reference, calibration = (list(batches(part)) for part in (found.parts.reference, found.parts.calibration))
    layers = named_layers(found.model, "block")
    listed = with_logits(found.model, layers)
    scores = separations(found.model, layers, reference, ClassSeparation())
    theirs = ClassSeparation(classes="predicted", leave_one_out=False)
    choices = arms(scores, separations(found.model, listed, reference, theirs))
    tests = [[{"x": some} for some in images.split(SIZE)] for images in (found.x, found.attacked().images)]
    # every arm asks the network for the same features: it is run once
    model, parts = replay_of(found.model, [layer.name for layer in listed], reference, calibration, *tests)
    results = {}
    for name, (chosen, settings) in choices.items():
        screen = fit_screen(model, chosen, parts[0], parts[1], settings)
        results[name] = judged(screen, model, *parts[2:])
    return {
        "arms": results,
        "weights": {name: weights(chosen) for name, (chosen, _) in choices.items()},
        "interest": {name: selection.policy for name, selection in layers_of_interest(scores).items()},
        "separation": scores.values.tolist(),
        "layers": [layer.name for layer in listed],
    }


def with_logits(model: nn.Module, blocks: Sequence[Layer]) -> list[Layer]:
    """The blocks and the map to the logits: the released list, whose first layer, the stem, enters the first block."""
    return [*blocks, named_layers(model, "linear")[-1]]


def weights(chosen: Chosen) -> dict[str, dict[str, float]]:
    """Layers that weigh something and what they weigh, by class; of a choice for all of them as that of one."""
    each = {EVERYONE: chosen} if isinstance(chosen, Selection) else {str(one): own for one, own in chosen.items()}
    return {one: _weights(own) for one, own in each.items()}


def _weights(own: Selection) -> dict[str, float]:
    values = own.mask.astype(float) if own.weights is None else own.weights
    return {layer.name: float(value) for layer, value in zip(own.layers, values, strict=True) if value}


def separations(
    model: nn.Module, layers: Sequence[Layer], reference: Sequence[Batch], settings: ClassSeparation
) -> LayerScores:
    """Class separation of every layer on the reference."""
    evidence = Evidence(model=model, data=reference, loss=image_loss, granularity="block")
    return score_class_separation(evidence, layers, settings)


def judged(screen: Screen, model: nn.Module, clean: Sequence[Batch], triggered: Sequence[Batch]) -> dict[str, float]:
    """Areas and rates of one screen; rates at the published tau and at the conformal threshold."""
    suspicion, flags = zip(*(_seen(screen, model, images) for images in (clean, triggered)), strict=True)
    whole = rate_detection(*suspicion, flags=(flags[0].tolist(), flags[1].tolist()))
    return {
        "auroc": whole.auroc.estimate,
        **{f"tpr at {rate:g}": one.estimate for rate, one in whole.tpr_at.items()},
        "tpr, tau": float((suspicion[1] > TAU).mean()),
        "fpr, tau": float((suspicion[0] > TAU).mean()),
        "tpr, conformal": float(flags[1].mean()),
        "fpr, conformal": float(flags[0].mean()),
    }


def _seen(screen: Screen, model: nn.Module, images: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
    found = list(screen.stream(model, images))
    return tuple(np.concatenate([getattr(one, what) for one in found]) for what in ("suspicion", "flags"))  # type: ignore[return-value]


def batches(images: Images) -> Sequence[Batch]:
    """All of a part."""
    return list(images.batches(SIZE))


DO: dict[str, Callable[..., dict[str, Any]]] = {"make_victim": make_victim, "screens": screens}


def compute(folder: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """One cell: `do` says which of the functions above, the other fields are its arguments."""
    quiet_libraries()
    torch.set_num_threads(1)
    return DO[fields["do"]](Path(folder), **{key: value for key, value in fields.items() if key != "do"})
