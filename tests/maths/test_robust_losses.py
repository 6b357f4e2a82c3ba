"""Losses of adversarial training against their formulas written out in probabilities."""

import numpy as np
import pytest
import torch

from keylayers.maths.robust_losses import divergence, mart, pgd_at, trades

GENERATOR = torch.Generator().manual_seed(0)
CLEAN, ATTACKED = (2 * torch.randn(7, 4, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
Y = torch.tensor([0, 1, 2, 3, 0, 1, 2])


def probabilities(logits: torch.Tensor) -> np.ndarray:
    powers = np.exp(logits.numpy())
    return powers / powers.sum(1, keepdims=True)


P, Q, ROWS = probabilities(CLEAN), probabilities(ATTACKED), np.arange(7)
KL = (P * np.log(P / Q)).sum(1)


def test_each_loss_is_its_formula() -> None:
    y = Y.numpy()
    rival = np.where(np.eye(4, dtype=bool)[y], 0, Q).max(1)
    boosted = -np.log(Q[ROWS, y]) - np.log(1 - rival)
    np.testing.assert_allclose(divergence(CLEAN, ATTACKED).numpy(), KL, rtol=1e-10)
    assert float(pgd_at(None, ATTACKED, Y)) == pytest.approx(-np.log(Q[ROWS, y]).mean())
    assert float(trades(CLEAN, ATTACKED, Y, 3.0)) == pytest.approx(-np.log(P[ROWS, y]).mean() + 3 * KL.mean())
    assert float(mart(CLEAN, ATTACKED, Y, 3.0)) == pytest.approx((boosted + 3 * KL * (1 - P[ROWS, y])).mean())


def test_images_that_the_attack_left_alone_cost_no_divergence() -> None:
    assert not divergence(CLEAN, CLEAN).any()
    assert float(trades(CLEAN, CLEAN, Y, 6.0)) == pytest.approx(float(pgd_at(None, CLEAN, Y)))


def test_the_boosted_loss_and_its_slope_stay_finite_where_a_wrong_answer_is_sure() -> None:
    logits = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    loss = mart(torch.zeros(1, 3), logits, torch.tensor([0]), 0.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(400 - np.log(2), rel=1e-5) and torch.isfinite(logits.grad).all()
