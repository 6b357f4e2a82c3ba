"""Losses of adversarial training as functions of the logits of clean and of attacked images: PGD-AT, TRADES, MART."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

Logits = Float[Tensor, "batch classes"]
Labels = Int[Tensor, " batch"]


def pgd_at(clean: Logits | None, attacked: Logits, y: Labels, beta: float = 0.0) -> Float[Tensor, ""]:
    """Mean cross-entropy of attacked images in nats (Madry et al. 2018, arXiv:1706.06083, Eq. 2.1); clean ones and beta
    play no part."""
    return cross_entropy(attacked, y)


def trades(clean: Logits | None, attacked: Logits, y: Labels, beta: float = 6.0) -> Float[Tensor, ""]:
    """Cross-entropy of clean images plus beta KL(p(x) || p(x')), means in nats (Zhang et al. 2019, arXiv:1901.08573,
    for several classes, with KL as in its experiments; beta is the paper's 1/lambda)."""
    assert clean is not None
    return cross_entropy(clean, y) + beta * divergence(clean, attacked).mean()


def mart(clean: Logits | None, attacked: Logits, y: Labels, beta: float = 5.0) -> Float[Tensor, ""]:
    """Boosted cross-entropy of attacked images plus beta KL(p(x) || p(x')) (1 - p_y(x)), means in nats (Wang et al.
    2020, "Improving adversarial robustness requires revisiting misclassified examples", ICLR).

    The boosted one is -log p_y(x') - log(1 - max_{k != y} p_k(x')).
    """
    assert clean is not None
    sure = clean.log_softmax(1).gather(1, y[:, None])[:, 0].exp()
    log_p = attacked.log_softmax(1)
    rival = log_p.scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)
    rest = log_p.scatter(1, rival, -torch.inf).logsumexp(1)  # log(1 - p_rival), without cancellation
    boosted = -log_p.gather(1, y[:, None])[:, 0] - rest
    return (boosted + beta * divergence(clean, attacked) * (1 - sure)).mean()


def divergence(clean: Logits, attacked: Logits) -> Float[Tensor, " batch"]:
    """KL(p(x) || p(x')) of each image in nats, at least 0."""
    log_p, log_q = clean.log_softmax(1), attacked.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)
