"""Projected ascent against closed forms: linear functions in both norms, where [0, 1] binds and where it does not."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from keylayers.errors import BadInput, UnknownName
from keylayers.maths.attacks import Ball, gradient, pgd_best_iterate, pgd_last_iterate

SHAPE = (5, 2, 4, 3)
NORMS = ("linf", "l2")


def drawn(*shape: int, seed: int = 0, normal: bool = False) -> torch.Tensor:
    make = torch.randn if normal else torch.rand
    return make(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inner(x: torch.Tensor) -> torch.Tensor:
    """Images far from 0 and 1, so that no box binds."""
    return 0.4 + 0.2 * x


def distance(ball: Ball, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).flatten(1).norm(p=math.inf if ball.norm == "linf" else 2, dim=1)


@pytest.mark.parametrize("norm", NORMS)
def test_on_a_linear_model_the_margin_falls_by_eps_times_the_dual_norm_of_its_weights(norm) -> None:
    """Margin (w0 - w1) x + b0 - b1, so the loss log(1 + exp(-margin)) is largest at margin - eps |w0 - w1|_dual."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(24, 2)).double()
    x, y, ball = inner(drawn(*SHAPE)), torch.tensor([0, 1, 0, 1, 1]), Ball(0.1, norm)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(z), y, reduction="none")

    found = pgd_best_iterate(loss, x, ball, 0.05, 60)
    weight, sign = model[1].weight[0] - model[1].weight[1], 1 - 2 * y
    margin = sign * (model(x)[:, 0] - model(x)[:, 1])
    fallen = margin - ball.eps * weight.norm(p=1 if norm == "linf" else 2)
    torch.testing.assert_close(found.values, nn.functional.softplus(-fallen).detach(), rtol=1e-6, atol=1e-9)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [0.05, 0.4, 1.5, 40.0])
def test_where_the_box_binds_it_equals_the_exact_optimum(norm, eps) -> None:
    """... which is checked against scipy's solver of the same convex problem."""
    from scipy.optimize import minimize

    x, slope, ball = drawn(*SHAPE), drawn(*SHAPE, seed=1, normal=True), Ball(eps, norm)
    x[0, 0, 0], x[1, 1, 1] = 0.0, 1.0
    exact = ball.optimum(slope, x)
    best = (slope * exact).flatten(1).sum(1)
    found = pgd_best_iterate(lambda z: (slope * z).flatten(1).sum(1), x, ball, eps / 4, 300)
    torch.testing.assert_close(found.values, best, rtol=1e-4, atol=1e-9)
    for point in (exact, found.x):
        assert float(point.min()) >= 0 and float(point.max()) <= 1
        assert (distance(ball, point, x) <= eps * (1 + 1e-9)).all()
    if norm == "l2":
        centre, g = x[0].flatten().numpy(), slope[0].flatten().numpy()
        ball_holds = {"type": "ineq", "fun": lambda z: eps**2 - ((z - centre) ** 2).sum()}
        solved = minimize(
            lambda z: -g @ z, centre, jac=lambda z: -g, bounds=[(0, 1)] * 24, constraints=ball_holds, method="SLSQP"
        )
        assert float(best[0]) >= -solved.fun - 1e-5


@pytest.mark.parametrize("norm", NORMS)
@given(seed=st.integers(0, 10**6), eps=st.floats(0, 3), reach=st.floats(0.1, 4))
def test_a_projection_is_the_nearest_image_of_the_ball(norm, seed, eps, reach) -> None:
    """Nearest: the residual has no positive product with the way to any other point of the set (a convex one)."""
    ball, centre = Ball(eps, norm), drawn(3, 1, 3, 3, seed=seed)
    point = centre + reach * drawn(3, 1, 3, 3, seed=seed + 1, normal=True)
    nearest = ball.project(point, centre)
    assert float(nearest.min()) >= 0 and float(nearest.max()) <= 1
    assert (distance(ball, nearest, centre) <= eps + 1e-9).all()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        other = ball.start(centre, generator)
        assert (((point - nearest) * (other - nearest)).flatten(1).sum(1) <= 1e-6).all()
    again = ball.project(nearest, centre)
    torch.testing.assert_close(again, nearest, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
def test_a_ball_of_radius_zero_changes_nothing_bit_for_bit(norm) -> None:
    x = drawn(*SHAPE).float()
    found = pgd_best_iterate(lambda z: z.square().flatten(1).sum(1), x, Ball(0.0, norm), 0.1, 3, restarts=2)
    assert torch.equal(found.x, x)
    assert torch.equal(pgd_last_iterate(lambda z: z.sum(), x, Ball(0.0, norm), 0.1, 3), x)


def bumpy(z: torch.Tensor) -> torch.Tensor:
    return torch.sin(25 * z).flatten(1).sum(1)


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_and_more_restarts_never_do_worse_and_the_best_iterate_is_kept(norm) -> None:
    x, ball = drawn(*SHAPE), Ball(0.3, norm)
    rows = [pgd_best_iterate(bumpy, x, ball, 0.2, steps, seed=3).values for steps in (0, 1, 2, 5, 20)]
    assert all((later >= earlier).all() for earlier, later in pairwise(rows))
    found = pgd_best_iterate(bumpy, x, ball, 0.2, 20, seed=3)
    assert torch.equal(found.values, bumpy(found.x)) and torch.equal(found.values, found.path.max(0).values)
    assert not torch.equal(found.path[-1], found.values)  # so large a step overshoots: the last is not the best
    more = pgd_best_iterate(bumpy, x, ball, 0.2, 20, seed=3, restarts=4)
    assert (more.values >= found.values).all() and (more.values > found.values).any()
    assert torch.equal(bumpy(pgd_last_iterate(bumpy, x, ball, 0.2, 20, seed=3)), found.path[-1])


@pytest.mark.parametrize("norm", NORMS)
def test_starts_depend_on_the_seed_alone_and_fill_the_ball(norm) -> None:
    x, ball, before = 0.5 * torch.ones(400, 1, 2, 2), Ball(0.25, norm), torch.get_rng_state()
    one, again, other = (ball.start(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    radii = distance(ball, one, x) / ball.eps
    assert float(radii.max()) <= 1 + 1e-6
    assert float((radii**4).mean()) == pytest.approx(0.5, abs=0.05)  # of four numbers, radius^4 is even
    pgd_best_iterate(bumpy, x, ball, 0.1, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_gradients_that_are_missing_or_nan_move_nothing() -> None:
    x = drawn(*SHAPE)
    for objective in (
        lambda z: z.round().flatten(1).sum(1),
        lambda z: z.detach().flatten(1).sum(1),
        lambda z: (0 * z).sqrt().flatten(1).sum(1),  # 0 * inf
    ):
        assert not gradient(objective, x).any()
        assert torch.equal(pgd_last_iterate(objective, x, Ball(0.2), 0.1, 3, random_start=False), x)


def test_tiny_slopes_have_a_direction_too() -> None:
    slope = torch.zeros(2, 1, 1, 2)
    slope[0, 0, 0] = torch.tensor([3e-30, 4e-30])
    way = Ball(1.0, "l2").uphill(slope)
    torch.testing.assert_close(way[0, 0, 0], torch.tensor([0.6, 0.8]))
    assert not way[1].any()


def test_what_makes_no_sense_is_refused() -> None:
    x = drawn(*SHAPE)
    with pytest.raises(UnknownName, match="'l-inf'; did you mean 'linf'"):
        Ball(0.1, "l-inf")
    for eps in (-0.1, math.nan, math.inf):
        with pytest.raises(BadInput, match=rf"`eps={eps}`: expected a number of at least 0"):
            Ball(eps)
    with pytest.raises(BadInput, match=r"reach from 1 to 1\.9.*normalisation inside the network"):
        pgd_best_iterate(bumpy, x.clamp_min(0.5) * 2, Ball(), 0.1, 1)
    with pytest.raises(BadInput, match="from the image itself are all the same"):
        pgd_best_iterate(bumpy, x, Ball(), 0.1, 1, restarts=2, random_start=False)
    with pytest.raises(BadInput, match="0 restarts"):
        pgd_best_iterate(bumpy, x, Ball(), 0.1, 1, restarts=0)
    with pytest.raises(BadInput, match=r"uint8 of shape \(5, 2, 4, 3\)"):
        pgd_last_iterate(bumpy, (x * 255).byte(), Ball(), 0.1, 1)
