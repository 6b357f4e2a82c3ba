"""Clean fine-tuning of the selected layers, taken back as far as robustness needs it (RiFT)."""

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge
from jaxtyping import Float, Int
from torch import Tensor, nn

from keylayers.actions.fingerprinting import check_only_changed, fingerprints
from keylayers.actions.freezing import tensors_that_may_change, tuning_only
from keylayers.layers.structure import walk
from keylayers.measures.attacks import Attack, Pgd
from keylayers.measures.robustness import Outcomes, clean_accuracy, robust_accuracy
from keylayers.models.pixels import checked_pixels
from keylayers.scores.selection import Selection
from keylayers.settings import Settings, Share
from keylayers.training.images import ImageTraining, train_images


@dataclass(frozen=True)
class RiftSettings(Settings):
    """How the selected layers are fine-tuned, and what robustness may cost."""

    training: ImageTraining = field(default_factory=lambda: ImageTraining(epochs=10, learning_rate=1e-3))
    attack: Attack = field(default_factory=Pgd)
    """What the robust accuracy is measured under."""
    points: Annotated[int, Ge(2)] = 11
    """Shares of the change that are tried, evenly from 0 to 1."""
    tolerance: Share = 0.0
    """Robust accuracy that may be given up, in [0, 1]."""


@dataclass(frozen=True)
class Rifted:
    """The fine-tuned network and how the share of its change was chosen."""

    model: nn.Module
    """The one that was given, at the chosen share, in eval mode."""
    share: float
    """Largest one tried that keeps the robust accuracy; 0: the network as it was."""
    shares: tuple[float, ...]
    clean: tuple[Outcomes, ...]
    """Of the calibration images, at each share."""
    robust: tuple[Outcomes, ...]
    losses: tuple[float, ...]
    """Mean clean loss of each epoch."""
    untouched: int
    """Parameters and buffers proved bit-identical to before."""


def rift(
    model: nn.Module,
    selection: Selection,
    x: Float[Tensor, "samples channels height width"],
    y: Int[Tensor, " samples"],
    settings: RiftSettings | None = None,
    *,
    calibration: tuple[Float[Tensor, "held channels height width"], Int[Tensor, " held"]],
) -> Rifted:
    """Fine-tunes exactly the selected layers on clean images, then goes only as far that way as robustness is kept.

    W(a) = (1 - a) W_0 + a W_1 with the largest a whose robust accuracy on the calibration images is at least that at 0
    less the tolerance (Zhu et al. 2023, arXiv:2308.02533). The paper selects the one module of *lowest*
    robust capacity: `bottom:1` of that criterion. Running statistics of selected batch norms go the same share.

    Raises:
        BadInput: for images outside [0, 1], no images, or other labels. BadSelection: if the selection does not fit.
        Diverged: if a loss is not finite. After an error the network is as it was.
    """
    # deviates: the authors' code chooses a on the test set; here on images that are judged on no more.
    settings = settings or RiftSettings()
    checked_pixels(x), checked_pixels(calibration[0])
    before, allowed = fingerprints(model), tensors_that_may_change(model, selection)
    own = {name: value.detach().clone() for name, value in _named(model, allowed).items()}
    share = 0.0
    try:
        with tuning_only(model, selection):
            losses = train_images(model, x, y, settings.training)
        untouched = check_only_changed(before, fingerprints(model), allowed)
        tuned = {name: value.detach().clone() for name, value in _named(model, allowed).items()}
        shares = tuple(step / (settings.points - 1) for step in range(settings.points))
        clean, robust = [], []
        for tried in shares:
            _place(model, own, tuned, tried)
            clean.append(clean_accuracy(model, *calibration))
            robust.append(robust_accuracy(model, *calibration, settings.attack))
        least = robust[0].accuracy - settings.tolerance
        share = max(tried for tried, one in zip(shares, robust, strict=True) if one.accuracy >= least)
        _place(model, own, tuned, share)
    except BaseException:
        _place(model, own, own, 0.0)
        raise
    return Rifted(model, share, shares, tuple(clean), tuple(robust), tuple(losses), untouched)


def _named(model: nn.Module, names: Container[str]) -> dict[str, Tensor]:
    """Unwrapped name -> parameter or buffer, of those names."""
    return {
        name: value
        for node in walk(model)
        for table in (node.inner._parameters, node.inner._buffers)
        for key, value in table.items()
        if value is not None and (name := f"{node.name}.{key}".removeprefix(".")) in names
    }


@torch.no_grad()
def _place(model: nn.Module, own: dict[str, Tensor], tuned: dict[str, Tensor], share: float) -> None:
    """Writes that share of the way; 0 and 1 are exact, counters are those of the nearer end."""
    for name, value in _named(model, own).items():
        if value.is_floating_point():
            value.copy_(torch.lerp(own[name], tuned[name], share))
        else:
            value.copy_(tuned[name] if share > 0.5 else own[name])
