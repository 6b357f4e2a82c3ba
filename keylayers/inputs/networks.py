"""Networks of images as users name them: loaded, looked at, stored; what is suppressed in one goes with its weights."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from keylayers.data.images import Images
from keylayers.errors import BadInput, KeylayersError
from keylayers.files import check_regular, explained, reason
from keylayers.layers.suppressed import Suppressed
from keylayers.layers.tensor_swap import frozen
from keylayers.measures.backdoor import check_labels, predicted_classes
from keylayers.measures.objective import logits_of, model_device
from keylayers.models.factory import put_weights
from keylayers.models.loading import LoadedModel, load_model
from keylayers.models.normalised import normalise_inside
from keylayers.models.sources import is_factory
from keylayers.runs import Checkpoint, Progress, note, read_json, write_json, write_tensors
from keylayers.training.trainer import Report

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
"""Files of a checkpoint that state the normalisation; the second under `image_processor`, where it has that."""
FORMAT = "keylayers/suppressed/1"
LOOKED_AT = 256  # images that a network is tried on before the work


def load_network(source: str, weights: str | None = None, seed: int = 0) -> LoadedModel:
    """The network in eval mode, taking images in [0, 1], with the suppression that is stored beside its weights.

    A Hugging Face checkpoint is normalised inside by what its preprocessor says; another network must do so itself.
    Weights go into a factory's network, or over a checkpoint's own. A factory that draws its weights draws them with
    the seed.

    Raises:
        BadInput: as `load_model` does, for a language model, or if a preprocessor's file cannot be read.
    """
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        loaded = load_model(source, weights=weights if is_factory(source) else None)
    if getattr(loaded.model, "main_input_name", None) == "input_ids":
        raise BadInput(f"{source} is a model of texts; this takes networks of images.")
    if not is_factory(source):
        _normalise(loaded)
        if weights is not None:
            put_weights(loaded.model, source, weights)
    if weights is None or not (beside := Path(weights).with_suffix(".json")).is_file():
        return loaded
    return LoadedModel(_suppressed(loaded.model, beside), source)


def store_network(model: nn.Module, path: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """Writes the weights of the network itself (or a state of `model`) and, beside them, what is suppressed in it."""
    held = dict(model.state_dict() if state is None else state)
    if isinstance(model, Suppressed):
        write_json(path.with_suffix(".json"), {"format": FORMAT, "skips": model.factors})
    while isinstance(model, Suppressed):
        held, model = {name.removeprefix("module."): tensor for name, tensor in held.items()}, model.module
    write_tensors(path, held)


def look_at(model: nn.Module, images: Images, source: str, seed: int = 0) -> int:
    """Tries a network on a few of the images before the work and says what suggests that another was meant; its number
    of classes.

    Raises:
        BadInput: where it does not run on them.
    """
    x, y = images.drawn(LOOKED_AT, seed).tensors()
    try:
        with frozen(model), torch.no_grad():
            logits = logits_of(model(x[:8].to(model_device(model)))).float().cpu()
    except KeylayersError:
        raise
    except Exception as error:  # whatever a network does with what it was not made for
        raise BadInput(
            f"{source} does not run on images of shape {tuple(x.shape[1:])} (channels, height, width): {reason(error)}"
        ) from error
    if logits.ndim != 2:
        raise BadInput(
            f"{source} returns {tuple(logits.shape)} for {min(8, len(x))} images; expected (images, classes)."
        )
    classes = int(logits.shape[1])
    check_labels(y, classes, images.source, len(x))
    right = float((predicted_classes(model, x) == y).float().mean())
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones(len(logits)), atol=1e-3):
        note(
            f"{source}: outputs sum to 1 as probabilities do; losses and attacks take them for logits, so return those."
        )
    guess = 1 / classes
    if right < guess + min(guess, (1 - guess) / 4):
        note(
            f"{source} answers {right:.0%} of {len(x)} images right, where a guess is {guess:.0%}: are its "
            "weights missing (`weights`), the labels others, or the pixels in another range?"
        )
    return classes


def shown(bar: Progress[int]) -> Report:
    """What tells a bar of each epoch."""
    return lambda done, total, loss: bar.advance(1, text=f"loss {loss:.3f}")


def epochs_done(keeps: Checkpoint) -> int:
    """How many a training that was stopped has done; says that it goes on."""
    found = keeps.load()
    if found is None:
        return 0
    note(f"going on after epoch {found[0]}")
    return found[0]


def _suppressed(model: nn.Module, beside: Path) -> nn.Module:
    """As the file beside the weights says; as it is where the file is of another sort."""
    try:
        stated = json.loads(beside.read_text())
    except (OSError, ValueError):
        return model
    if not isinstance(stated, dict) or stated.get("format") != FORMAT:
        return model
    factors: dict[str, float] = read_json(beside, skips=dict)["skips"]
    for factor in dict.fromkeys(factors.values()):
        model = Suppressed(model, [name for name, own in factors.items() if own == factor], factor)
    note(f"{beside} beside the weights: {', '.join(factors)} stay turned down")
    return model


def _normalise(loaded: LoadedModel) -> None:
    stated = preprocessing(loaded)
    if "image_mean" in stated and "image_std" in stated:
        if stated.get("do_normalize", True):
            with explained(f"{loaded.source}: the stated mean and deviation are none"):
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
        with explained(f"cannot read {name} of {loaded.source!r}, which says how images are normalised"):
            file = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
            stated = {} if file is None else json.loads(check_regular(file).read_text())
            if own := stated.get("image_processor") if name == PROCESSOR else stated:
                return dict(own)
    return {}
