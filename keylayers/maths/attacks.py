"""Projected ascent in a ball around images in [0, 1]: the one loop behind every gradient attack, on losses or features.

An objective is any function of the images with one value per image; what it is made of is not known here.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from keylayers.errors import BadInput
from keylayers.settings import NotNegative, Settings

Pixels = Float[Tensor, "batch channels height width"]
Objective = Callable[[Pixels], Tensor]
"""Images -> what is to become large: one value per image; for `climb` their sum does, too."""
Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class Ball(Settings):
    """Images at most so far from the one they are made from, and in [0, 1]."""

    eps: NotNegative = 8 / 255
    """Its radius: of the largest change of a pixel (linf), or of the Euclidean distance (l2)."""
    norm: Norm = "linf"

    def project(self, point: Pixels, centre: Pixels) -> Pixels:
        """The nearest image of the ball, exactly: for l2 of the ball's intersection with [0, 1], not one after the
        other."""
        if self.norm == "linf":
            return point.clamp(centre - self.eps, centre + self.eps).clamp(0, 1)
        return _moved(centre, point - centre, self.eps, most=1.0)

    def uphill(self, slope: Pixels) -> Pixels:
        """The direction of length 1 in which a function of this slope rises most; 0 where the slope is."""
        if self.norm == "linf":
            return slope.sign()
        flat = slope.flatten(1)
        flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)
        return (flat / flat.norm(dim=1, keepdim=True).clamp_min(torch.finfo(slope.dtype).tiny)).view_as(slope)

    def start(self, centre: Pixels, generator: torch.Generator) -> Pixels:
        """A point drawn evenly from the ball, then brought into [0, 1]; the same on every device."""
        shape = centre.shape
        if self.norm == "linf":
            step = torch.rand(shape, generator=generator) * 2 - 1
        else:
            flat = torch.randn(shape, generator=generator).flatten(1)
            radius = torch.rand(len(flat), 1, generator=generator) ** (1 / flat.shape[1])
            step = (radius * flat / flat.norm(dim=1, keepdim=True)).view(shape)
        return self.project(centre + self.eps * step.to(centre), centre)

    def optimum(self, slope: Pixels, centre: Pixels) -> Pixels:
        """The image of the ball that maximises the linear function of this slope, in closed form."""
        if self.norm == "linf":
            return (centre + self.eps * slope.sign()).clamp(0, 1)
        return _moved(centre, slope, self.eps, most=math.inf)


def _moved(centre: Pixels, direction: Pixels, eps: float, most: float) -> Pixels:
    """The centre moved by s * direction, each pixel stopping at 0 or 1: as far as the distance is eps and s <= most.

    Minimising |z - v|^2 and maximising <g, z> over the l2 ball and [0, 1] have this form (their Lagrangians separate
    into pixels); the squared distance is quadratic in s between the s at which pixels stop, so s is found by sorting.
    """
    way = direction.flatten(1).double()
    at = centre.flatten(1).double()
    room = torch.where(way > 0, 1 - at, at) * (way != 0)
    way = way.abs()
    stops, order = torch.where(way > 0, room / way.clamp_min(1e-300), math.inf).sort(dim=1)
    stopped, moving = room.gather(1, order).square(), way.gather(1, order).square()
    before = stopped.cumsum(1) - stopped  # what the pixels that stop earlier add to the squared distance
    rest = moving.flip(1).cumsum(1).flip(1)  # of those that still move
    known = stops.isfinite()
    reached = before + torch.where(known, stops, 0).square() * rest
    first = ((reached < eps**2) & known).sum(1, keepdim=True)  # the first stop at or beyond the sphere
    inside = first >= known.sum(1, keepdim=True)  # every pixel stops before it
    first = first.clamp_max(way.shape[1] - 1)
    left = (eps**2 - before.gather(1, first)).clamp_min(0)
    scale = (left / rest.gather(1, first).clamp_min(1e-300)).sqrt()
    scale = torch.where(inside, math.inf, scale).clamp_max(most)
    length = torch.where(way > 0, torch.minimum(scale * way, room), 0)
    return (at + length * direction.flatten(1).sign()).to(centre.dtype).clamp(0, 1).view_as(centre)


@dataclass(frozen=True, eq=False)
class Ascent:
    """Where an ascent came to."""

    x: Pixels
    """Of every image the best iterate of all restarts."""
    values: Float[Tensor, " batch"]
    """The objective there."""
    path: Float[Tensor, "iterates batch"]
    """The objective at each iterate of the first restart, its start included."""


def pgd_best_iterate(
    objective: Objective,
    x: Pixels,
    ball: Ball,
    step: float,
    steps: int,
    *,
    restarts: int = 1,
    seed: int = 0,
    random_start: bool = True,
) -> Ascent:
    """Images in the ball where the objective is large: x <- project(x + step * uphill), for both norms (PGD, Madry et
    al. 2018, arXiv:1706.06083).

    Kept is the best iterate of each image, over all restarts, its start included: so the value never falls with more
    steps or restarts. No parameter gets a gradient and no global random number is drawn. A network in the objective
    should be in eval mode. Cost: steps gradients and one forward pass per restart.

    Raises:
        BadInput: for images outside [0, 1], fewer than 1 restart, restarts that are all the same, or no step size.
    """
    _check(x, step, steps, restarts, random_start)
    generator = torch.Generator().manual_seed(seed)
    best, top, path = x, torch.full((len(x),), -math.inf, dtype=x.dtype, device=x.device), []
    for restart in range(restarts):
        begin = ball.start(x, generator) if random_start else x
        for point, values in _iterates(objective, x, ball, step, steps, begin):
            values = values.to(top.dtype).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
            better = values > top
            best = torch.where(better.view(-1, 1, 1, 1), point, best)
            top = torch.where(better, values, top)
            if restart == 0:
                path.append(values)
    return Ascent(best, top, torch.stack(path))


def pgd_last_iterate(
    objective: Objective, x: Pixels, ball: Ball, step: float, steps: int, *, seed: int = 0, random_start: bool = True
) -> Pixels:
    """The last iterate of the same ascent from one start: a forward pass cheaper, for training and criteria.

    Raises:
        BadInput: as `ascend` does.
    """
    _check(x, step, steps, 1, random_start)
    begin = ball.start(x, torch.Generator().manual_seed(seed)) if random_start else x
    for _ in range(steps):
        _, slope = _slope(objective, begin)
        begin = ball.project(begin + step * ball.uphill(slope), x)
    return begin


def _iterates(
    objective: Objective, x: Pixels, ball: Ball, step: float, steps: int, point: Pixels
) -> Iterator[tuple[Pixels, Float[Tensor, " batch"]]]:
    for _ in range(steps):
        values, slope = _slope(objective, point)
        yield point, values
        point = ball.project(point + step * ball.uphill(slope), x)
    with torch.no_grad():
        yield point, objective(point)


def _slope(objective: Objective, point: Pixels) -> tuple[Tensor, Pixels]:
    """The objective and its gradient; that of images is 0 where it is NaN or the objective does not depend on them."""
    with torch.enable_grad():
        leaf = point.detach().requires_grad_()
        values = objective(leaf)
        if not values.requires_grad:
            return values.detach(), torch.zeros_like(point)
        (slope,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True, materialize_grads=True)
    return values.detach(), slope.nan_to_num(nan=0.0)


def gradient(objective: Objective, x: Pixels) -> Pixels:
    """Gradient of the objective in the images."""
    return _slope(objective, x)[1]


def _check(x: Pixels, step: float, steps: int, restarts: int, random_start: bool) -> None:
    if steps < 0 or restarts < 1 or not (math.isfinite(step) and step >= 0):
        raise BadInput(
            f"an attack of {steps} steps of {step} and {restarts} restarts; expected numbers of at least 0, and one "
            "restart."
        )
    if restarts > 1 and not random_start:
        raise BadInput(f"{restarts} restarts from the image itself are all the same; start at random, or once.")
    if x.ndim != 4 or not x.is_floating_point():
        raise BadInput(
            f"an attack got {str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}; expected images as floats "
            "in [0, 1], (batch, channels, height, width)."
        )
    if x.numel() and not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise BadInput(
            f"images reach from {float(x.min()):.4g} to {float(x.max()):.4g}; an attack needs them in [0, 1], with the "
            "normalisation inside the network."
        )
