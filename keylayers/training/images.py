"""The one training loop of image classifiers: SGD with momentum and a cosine, plain or on attacked images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from keylayers.errors import BadInput, Diverged
from keylayers.measures.objective import logits_of, model_device
from keylayers.settings import Count, Natural, NotNegative, Positive, Seed, Settings
from keylayers.training.image_states import Keeps, keep_state, take_up
from keylayers.training.trainer import hold_statistics

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model in training mode, images, labels) -> mean loss."""


@dataclass(frozen=True)
class ImageTraining(Settings):
    """How a classifier of images is trained; defaults suit the digits."""

    epochs: Natural = 8
    batch_size: Count = 100
    """Images per step; a last batch of fewer is left out where there is a whole one, as batch norms need many."""
    learning_rate: Positive = 0.1
    """Its highest; it rises over the first tenth of the steps and falls as half a cosine to 0."""
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9
    weight_decay: NotNegative = 5e-4
    seed: Seed = 0
    """Of the order of images, and of dropout."""


def ordinary_loss(model: nn.Module, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats."""
    return cross_entropy(logits_of(model(x)), y)


def train_images(
    model: nn.Module,
    x: Float[Tensor, "samples channels height width"],
    y: Int[Tensor, " samples"],
    settings: ImageTraining | None = None,
    objective: Objective = ordinary_loss,
    *,
    before_epoch: Callable[[int], None] | None = None,
    after_epoch: Callable[[int, float], None] | None = None,
    keeps: Keeps | None = None,
) -> list[float]:
    """Trains the parameters that ask for gradients, in place; the mean loss of each epoch. Model left in eval mode.

    Frozen batch norms keep their running statistics, too. The global random state is left as it was. `before_epoch` may
    change which parameters ask for gradients: the optimiser then starts afresh with those, on the same schedule.
    `after_epoch` gets the epoch's number and mean loss; after it the state goes into `keeps`, from which the same call
    goes on, bit for bit.

    Raises:
        BadInput: without images, parameters to train, or as many labels. Diverged: if a loss is not finite.
    """
    settings = settings or ImageTraining()
    if len(x) == 0 or len(x) != len(y):
        raise BadInput(
            f"training got {len(x)} images and {len(y)} labels; expected at least one image and as many labels."
        )
    size = min(settings.batch_size, len(x))
    steps = len(x) // size
    total, step = steps * settings.epochs, 0
    optimiser: torch.optim.Optimizer | None = None
    device, losses = model_device(model), []
    with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
        torch.manual_seed(settings.seed)
        order = torch.Generator().manual_seed(settings.seed)
        stood = None if keeps is None else take_up(keeps, model, order)
        if stood is not None:
            step, losses = stood.step, stood.losses
        for epoch in range(0 if stood is None else stood.epoch, settings.epochs):
            if before_epoch is not None:
                before_epoch(epoch)
            fresh, optimiser = optimiser is None, _optimiser(model, settings, optimiser)
            if stood is not None and fresh:
                stood.into(optimiser, model)
            model.train()
            hold_statistics(model)
            summed = 0.0
            for chosen in torch.randperm(len(x), generator=order)[: steps * size].split(size):
                for group in optimiser.param_groups:
                    group["lr"] = settings.learning_rate * _schedule(step, total)
                loss = objective(model, x[chosen].to(device), y[chosen].to(device))
                if not math.isfinite(value := float(loss.detach())):
                    raise Diverged(f"the loss is {value} in epoch {epoch}; lower the learning rate.")
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                summed, step = summed + value, step + 1
            losses.append(summed / steps)
            if after_epoch is not None:
                after_epoch(epoch, losses[-1])
            if keeps is not None:
                keep_state(keeps, epoch + 1, step, model, optimiser, order, losses)
    if optimiser is not None:
        optimiser.zero_grad()
    model.eval()
    return losses


def _optimiser(
    model: nn.Module, settings: ImageTraining, before: torch.optim.Optimizer | None
) -> torch.optim.Optimizer:
    """The one there is, or a new one where other parameters ask for gradients than it has."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if before is not None:
        if [id(one) for one in before.param_groups[0]["params"]] == [id(one) for one in wanted]:
            return before
        before.zero_grad()
    if not wanted:
        raise BadInput("training got no parameter that asks for gradients; unfreeze some (requires_grad_).")
    return torch.optim.SGD(
        wanted, settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay, nesterov=True
    )


def _schedule(step: int, total: int) -> float:
    """Share of the highest learning rate at a step, in (0, 1]."""
    warm = max(total // 10, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))
