"""Signs that a robust accuracy only shows attacks that failed: gradients that are masked, or a test set up wrongly.

The checks are those that Athalye et al. 2018 (arXiv:1802.00420) and AutoAttack's authors ask for.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from keylayers.layers.tensor_swap import frozen
from keylayers.maths.attacks import Ball, Pixels, gradient, pgd_best_iterate
from keylayers.measures.attacks import Attack, Pgd, loss_on
from keylayers.measures.objective import model_device
from keylayers.measures.robustness import Outcomes, clean_accuracy, robust_accuracy
from keylayers.models.pixels import checked_pixels

ZERO_SHARE, LEFT_STANDING, FALLEN, SPAN = 0.01, 0.05, 0.02, 0.1
"""Share of images without a gradient; share still right when any image may be made; share of its highest value by which
the loss may fall with more steps; least range of all pixels. Beyond these a flag is raised."""


@dataclass(frozen=True, eq=False)
class SanityFlags:
    """What the checks measured; `raised` says in sentences which of them failed."""

    training: bool
    """Whether a part of the network was in training mode when it was given; it is attacked in eval mode."""
    low: float
    high: float
    """Range of all pixels."""
    zero_gradients: float
    """Share of the images that are right whose loss has no gradient at all, in [0, 1]."""
    path: Float[Tensor, " iterates"]
    """Mean loss at the start of the attack and after each step; not of the best iterates, which never falls."""
    white_box: Outcomes | None
    """Under the attack that follows gradients; None: not asked for, as only a black box is compared with it."""
    black_box: Outcomes | None
    """Under one that does not; None: not asked for."""
    everything: Outcomes
    """Under the same attack in a ball that holds every image."""

    @property
    def raised(self) -> dict[str, str]:
        """Name of each check that failed -> a sentence; empty if all is well."""
        found: dict[str, str] = {}
        if self.training:
            found["eval mode"] = (
                "A part of the network was in training mode: batch norms and dropout would make each pass another "
                "network; call model.eval()."
            )
        if self.high - self.low < SPAN:
            found["input range"] = (
                f"All pixels lie between {self.low:.3g} and {self.high:.3g}, so the radius is large beside them; were "
                "the images divided by 255 twice?"
            )
        if self.zero_gradients > ZERO_SHARE:
            found["zero gradient"] = (
                f"For {self.zero_gradients:.0%} of the images the loss has no gradient, so no attack by gradients can "
                "move them; a margin (apgd-t) or a search (square) is needed."
            )
        white, black = self.white_box, self.black_box
        if white is not None and black is not None and black.correct.sum() < white.correct.sum():
            found["black box stronger"] = (
                f"{black.under}, which sees no gradient, leaves {black.accuracy:.1%} right and "
                f"{white.under} {white.accuracy:.1%}: the gradients mislead, or there are too few "
                "steps."
            )
        if self.everything.accuracy > LEFT_STANDING:
            found["large radius"] = (
                f"{self.everything.accuracy:.1%} stay right although any image may be made of any other: the attack "
                "fails, not the network."
            )
        top, last, first = float(self.path.max()), float(self.path[-1]), float(self.path[0])
        if last < (1 - FALLEN) * top or last <= first:
            found["loss over steps"] = (
                f"The mean loss goes from {first:.4g} over at most {top:.4g} to {last:.4g} with the steps, where each "
                "should add to it; take smaller steps, or the gradients mislead."
            )
        return found

    def __str__(self) -> str:
        return "\n".join(f"{name}: {why}" for name, why in self.raised.items()) or "no sign of a failed attack"


def sanity(
    model: nn.Module,
    x: Pixels,
    y: Int[Tensor, " samples"],
    attack: Pgd | None = None,
    *,
    black_box: Attack | None = None,
    batch_size: int = 200,
) -> SanityFlags:
    """Runs the checks on images that no one was tuned on; `black_box` is best `PeerAttack("square", ball)`.

    Cost: the attack twice; with a black box once more, and what that takes. The network is left as it was found.

    Raises:
        BadInput: for images outside [0, 1] or labels out of range.
    """
    attack, training = attack or Pgd(), any(module.training for module in model.modules())
    low, high = (float(end) for end in checked_pixels(x).aminmax())
    right = torch.from_numpy(clean_accuracy(model, x, y, batch_size=batch_size).correct)
    zeros, paths = [], []
    device = model_device(model)
    with frozen(model):
        for images, labels in zip(x[right].split(batch_size), y[right].split(batch_size), strict=True):
            images, labels = images.to(device), labels.to(device)
            loss = loss_on(model, labels)
            zeros.append(~gradient(loss, images).flatten(1).any(1))
            seeded = {"seed": attack.seed, "random_start": attack.random_start}
            paths.append(pgd_best_iterate(loss, images, attack.ball, attack.step_size, attack.steps, **seeded).path)  # type: ignore[arg-type]
    path = torch.cat(paths, 1).mean(1).cpu() if paths else torch.zeros(attack.steps + 1)
    reach = 1.0 if attack.ball.norm == "linf" else float(x[0].numel()) ** 0.5
    whole = replace(attack, ball=Ball(reach, attack.ball.norm), step=None)
    return SanityFlags(
        training,
        low,
        high,
        float(torch.cat(zeros).float().mean()) if zeros else 0.0,
        path,
        None if black_box is None else robust_accuracy(model, x, y, attack, batch_size=batch_size),
        None if black_box is None else robust_accuracy(model, x, y, black_box, batch_size=batch_size),
        robust_accuracy(model, x, y, whole, batch_size=batch_size),
    )
