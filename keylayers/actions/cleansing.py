"""Backdoor cleansing: the selected skips turned down, and the model fine-tuned around them on clean images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from keylayers.actions.fingerprinting import check_only_changed, fingerprints
from keylayers.errors import BadInput, BadSelection
from keylayers.layers.blocks import find_blocks
from keylayers.layers.capturing import capture
from keylayers.layers.layer import Layer, layer_named
from keylayers.layers.skips import example_for, skip_layers
from keylayers.layers.structure import module_named, parameters_of, tensors_of, walk
from keylayers.layers.suppressed import Suppressed
from keylayers.layers.tensor_swap import frozen, swapped
from keylayers.measures.backdoor import check_labels, check_no_class_empty
from keylayers.measures.objective import logits_of, model_device
from keylayers.models.pixels import image_argument
from keylayers.scores.selection import Selection
from keylayers.settings import Settings, Share
from keylayers.training.image_states import Keeps
from keylayers.training.images import ImageTraining, train_images
from keylayers.training.trainer import Report

Scope = Literal["stage", "block", "all"]


@dataclass(frozen=True)
class Cleanse(Settings):
    """How a model is cleansed.

    Raises:
        BadInput: for a factor outside [0, 1]. UnknownName: for another scope.
    """

    factor: Share = 0.0
    """Of the selected skips: f(x) + factor * x; 0 removes them, 1 leaves fine-tuning alone."""
    tune: Scope = "stage"
    """What trains: the list of blocks that holds the skip's block, that block, or everything."""
    fold: bool = False
    """Put the factor into the weights of projections at the end, so that no wrapper is needed. Identities have no
    weight; and what a later fine-tuning finds in the weights it may take out again."""
    training: ImageTraining = field(default_factory=lambda: ImageTraining(epochs=40, batch_size=50, learning_rate=0.05))
    """Of the fine-tuning; epochs=0 leaves it out."""


@dataclass(frozen=True, eq=False)
class Undo:
    """The original tensors of what was changed."""

    model: nn.Module
    """The network that was given."""
    tensors: Mapping[str, Tensor]

    def __call__(self) -> nn.Module:
        """Puts every tensor back, bit for bit, and gives the network without any suppression."""
        own = _stored(self.model)
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                own[name].copy_(tensor)
        return self.model


@dataclass(frozen=True, eq=False)
class Cleansed:
    """The cleansed model and what was done to get it."""

    model: nn.Module
    """`Suppressed` around the network that was given, which holds the tuned weights; folded, the network itself."""
    undo: Undo
    skips: tuple[str, ...]
    factor: float
    folded: bool
    losses: tuple[float, ...]
    """Of each epoch, mean cross-entropy in nats on the clean images."""
    trained: int
    """Scalars that trained."""
    untouched: int
    """Parameters and buffers proved bit-identical to before."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON, what is needed to suppress again after loading saved weights."""
        return {"skips": list(self.skips), "factor": self.factor, "folded": self.folded}


def cleanse(
    model: nn.Module,
    selection: Selection,
    x: Float[Tensor, "samples channels height width"],
    y: Int[Tensor, " samples"],
    settings: Cleanse | None = None,
    *,
    report: Report | None = None,
    keeps: Keeps | None = None,
) -> Cleansed:
    """Turns the selected skips down and fine-tunes around them on clean images, in place (shortcut suppression, Yang et
    al. 2023, arXiv:2211.05631).

    The suppression stays on while the model trains and afterwards: an identity skip as a wrapper (`Suppressed`, which
    saved weights do not hold: wrap again after loading), a projection as the same or folded into its last convolution
    or batch norm, exactly. Frozen batch norms keep their running statistics. After an error everything is as it was.
    `report` gets (epochs done, epochs in all, loss); `keeps` (`RunFolder.checkpoint`) has the state of each epoch, from
    which the same call on the same network goes on.

    Raises:
        BadInput: for a network without skips, labels out of range, a class without an image, or folding an identity.
            BadSelection: if what is selected is no skip of this network. Diverged: if a loss is not finite.
            KeylayersError: if anything else changed.
    """
    # deviates: the released code trains the projection it has silenced (which only decays it) and lets batch norms of
    # frozen stages follow the data; here neither. Its 10 epochs at 0.01
    # are of 5,000 images: on few, they are too few steps where two skips are gone.
    settings = settings or Cleanse()
    if not len(x):
        raise BadInput("there is no clean image to tune on; give some of every class.")
    skips = _checked(model, selection, settings, example_for(model, {image_argument(model): x[:1]}))
    _check_images(model, x, y)
    wanted = _trained(model, skips, settings)
    folded = [name for skip in skips for name in _affine(model, skip, x)] if settings.fold else []
    may = _with_buffers(model, wanted) | set(folded)
    before, originals = fingerprints(model), {n: t.detach().clone() for n, t in _stored(model).items() if n in may}
    undo, flags = Undo(model, originals), [(one, one.requires_grad, one.grad) for one in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    silent = Suppressed(model, skips, settings.factor)
    try:
        own = parameters_of(model)
        model.requires_grad_(False)
        for name in wanted:
            own[name].requires_grad_(True)
        epochs = settings.training.epochs
        told = None if report is None else lambda epoch, loss: report(epoch + 1, epochs, loss)
        losses = train_images(silent, x, y, settings.training, after_epoch=told, keeps=keeps) if epochs else []
        with torch.no_grad():
            for name in folded:
                tensors_of(model)[name].mul_(settings.factor)
        untouched = check_only_changed(before, fingerprints(model), may)
    except BaseException:
        undo()
        raise
    finally:
        for one, flag, gradient in flags:
            one.requires_grad_(flag)
            one.grad = gradient
        for module, mode in modes:
            module.training = mode
    result = model if settings.fold else silent
    result.eval()
    trained = sum(own[name].numel() for name in wanted)
    names = tuple(skip.name for skip in skips)
    return Cleansed(result, undo, names, settings.factor, settings.fold, tuple(losses), trained, untouched)


def _checked(
    model: nn.Module, selection: Selection, settings: Cleanse, example: Mapping[str, Tensor] | None
) -> list[Layer]:
    """The selected skips as this network has them."""
    found = skip_layers(model, example)
    names = [layer.name for layer in found]
    if strange := [name for name in selection.names if name not in names]:
        raise BadSelection(
            f"{len(strange)} of {len(selection)} selected layers are no skips of this network, first {strange[0]}; "
            f"score and select at granularity skip. It has {', '.join(names)}."
        )
    chosen = [layer_named(found, name) for name in selection.names]
    if bare := [skip.name for skip in chosen if settings.fold and not skip.parameters]:
        raise BadInput(
            f"{bare[0]} is an identity: it has no weight that a factor could be folded into. Leave fold out, and the "
            "suppression stays as a wrapper; or select projections."
        )
    return chosen


def _check_images(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with frozen(model), torch.no_grad():
        classes = logits_of(model(x[:1].to(model_device(model)))).shape[-1]
    check_labels(y, classes, "the clean images", len(x))
    check_no_class_empty(y, classes, "the clean images")


def _trained(model: nn.Module, skips: Iterable[Layer], settings: Cleanse) -> list[str]:
    """Names of the parameters that train; never those of a suppressed projection, which could undo the factor."""
    blocks, below = find_blocks(model), set[str]()
    silenced = {name for skip in skips for name in skip.parameters if settings.factor != 1}
    for skip in skips:
        if settings.tune == "all" or skip.block is None:
            below.add("")
        else:
            block = blocks[skip.block]
            below.add(f"{block}." if settings.tune == "block" else f"{block.rpartition('.')[0]}.".removeprefix("."))
    return [name for name in parameters_of(model) if name not in silenced and name.startswith(tuple(below))]


def _affine(model: nn.Module, skip: Layer, x: Tensor) -> list[str]:
    """Weight and bias of a projection's last map, tried on one image: its output must follow them in proportion.

    Raises:
        BadInput: where it does not.
    """
    places = [node for node in walk(model) if node.name == skip.name or node.name.startswith(f"{skip.name}.")]
    last = next(node for node in reversed(places) if node.inner._parameters)
    names = [f"{last.name}.{key}" for key in ("weight", "bias") if last.inner._parameters.get(key) is not None]
    own = parameters_of(model)
    with frozen(model), torch.no_grad():
        with capture(model, [skip.name], stop=True) as seen:
            model(x[:1].to(model_device(model)))
        projection, entering = module_named(model, skip.name), seen.inputs[skip.name]
        whole = projection(entering)
        with swapped(model, {name: own[name] / 2 for name in names}):
            half = projection(entering)
    if not torch.allclose(half, whole / 2, rtol=1e-4, atol=1e-6):
        raise BadInput(
            f"{skip.name} does not follow the weights of {last.name} in proportion, so that no factor can be folded "
            "into them; leave fold out, and the suppression stays as a wrapper."
        )
    return names


def _stored(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and lasting buffer, the counters of batch norms among them."""
    return {
        f"{node.name}.{key}".removeprefix("."): value
        for node in walk(model)
        for table in (node.inner._parameters, node.inner._buffers)
        for key, value in table.items()
        if value is not None and key not in node.inner._non_persistent_buffers_set
    }


def _with_buffers(model: nn.Module, wanted: Iterable[str]) -> set[str]:
    """The parameters, and the buffers of the modules that own them."""
    owners = {name.rpartition(".")[0] for name in wanted}
    return set(wanted) | {name for name in _stored(model) if name.rpartition(".")[0] in owners}
