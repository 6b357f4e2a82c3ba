"""Whether a trained model still tells its inputs apart: a dead one has a loss like any other."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from keylayers.errors import Diverged

DEAD = 1e-6
"""Nats by which predictions differ, below which they are one: an untrained model's differ by a thousand times more."""


def dependence(logits: Float[Tensor, "*places classes"]) -> float:
    """How far predictions depend on what is predicted from, in nats, at least 0: the mean Kullback-Leibler divergence
    of each place's distribution from the mean one. Infinite where there are fewer than two places or classes to tell.
    """
    flat = logits.detach().reshape(-1, logits.shape[-1]).double()
    if len(flat) < 2 or flat.shape[1] < 2:
        return math.inf
    each = flat.log_softmax(-1)
    mean = each.logsumexp(0) - math.log(len(each))
    return max(0.0, float((each.exp() * (each - mean)).sum(-1).mean()))


def require_alive(logits: Float[Tensor, "*places classes"], advice: str) -> None:
    """Refuses a model that predicts the same whatever it is given, by its predictions for several inputs.

    Raises:
        Diverged: for such a model, and where a prediction is not finite; `advice` says what to do.
    """
    if not bool(torch.isfinite(logits).all()):
        raise Diverged(f"the trained model's predictions are not finite; {advice}")
    if dependence(logits) < DEAD:
        raise Diverged(
            f"the trained model predicts the same whatever it is given: it is dead, whatever its loss (that of a "
            f"uniform guess among {logits.shape[-1]:,} is {math.log(logits.shape[-1]):.4f} nats); {advice}"
        )
