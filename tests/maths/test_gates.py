import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keylayers.maths.gates import CONCRETE_TEMPERATURE, STRETCH, expected_open, hard_concrete, soft_top_k

SCORES = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40)
SHARES = st.floats(0.02, 0.98)
TEMPERATURES = st.floats(0.05, 5)


def vector(scores: list[float]) -> torch.Tensor:
    return torch.tensor(scores, dtype=torch.float64)


@given(SCORES, SHARES, TEMPERATURES)
def test_the_sum_is_exact_and_larger_scores_get_larger_gates(scores: list[float], share: float, heat: float) -> None:
    gates = soft_top_k(vector(scores), share * len(scores), heat)
    assert float(gates.sum()) == pytest.approx(share * len(scores), abs=1e-9)
    assert ((gates >= 0) & (gates <= 1)).all()
    order = np.argsort(scores, kind="stable")
    assert (np.diff(gates.numpy()[order]) >= -1e-12).all()
    equal = vector([scores[0]] * len(scores))
    np.testing.assert_allclose(soft_top_k(equal, share * len(scores), heat), share, rtol=1e-9)


@given(SCORES, SHARES, TEMPERATURES, st.floats(-20, 20))
def test_a_common_shift_of_the_scores_changes_nothing(
    scores: list[float], share: float, heat: float, shift: float
) -> None:
    total = share * len(scores)
    moved = soft_top_k(vector(scores) + shift, total, heat)
    np.testing.assert_allclose(moved, soft_top_k(vector(scores), total, heat), atol=1e-9)


@given(SCORES, SHARES)
def test_single_precision_keeps_the_sum_too(scores: list[float], share: float) -> None:
    gates = soft_top_k(torch.tensor(scores), share * len(scores))
    assert gates.dtype == torch.float32
    assert float(gates.sum()) == pytest.approx(share * len(scores), abs=1e-4)


def test_225_layers_that_start_alike_keep_the_sum() -> None:
    """Llama-2-7B's layers at the score the learnt masks start from."""
    for temperature in (1.0, 0.01):
        gates = soft_top_k(torch.full((225,), 4.0), 67.5, temperature)
        assert float(gates.sum()) == pytest.approx(67.5, abs=1e-4)


@given(st.permutations(range(8)), st.integers(1, 7))
def test_as_the_temperature_falls_the_gates_tend_to_the_largest_scores(order: list[int], total: int) -> None:
    scores, wanted = vector([float(one) for one in order]), vector([float(one >= 8 - total) for one in order])
    distance = [float((soft_top_k(scores, total, heat) - wanted).abs().max()) for heat in (1.0, 0.3, 0.1, 0.02)]
    assert distance == sorted(distance, reverse=True) and distance[-1] < 1e-9


@given(SCORES.filter(lambda scores: max(scores) - min(scores) < 10), SHARES, st.floats(0.5, 2))
def test_the_implicit_gradient_equals_finite_differences(scores: list[float], share: float, heat: float) -> None:
    start, total, h = vector(scores), share * len(scores), 1e-5
    weights = torch.linspace(-1, 1, len(scores), dtype=torch.float64)
    asked = start.clone().requires_grad_()
    (soft_top_k(asked, total, heat) * weights).sum().backward()
    for index in range(0, len(scores), max(1, len(scores) // 4)):
        up, down = start.clone(), start.clone()
        up[index] += h
        down[index] -= h
        slope = ((soft_top_k(up, total, heat) - soft_top_k(down, total, heat)) * weights).sum() / (2 * h)
        assert float(asked.grad[index]) == pytest.approx(float(slope), abs=1e-7, rel=1e-5)


def test_the_gradient_never_opens_all_gates_together() -> None:
    scores = torch.randn(12, dtype=torch.float64, requires_grad=True)
    soft_top_k(scores, 5.0).sum().backward()
    np.testing.assert_allclose(scores.grad, 0, atol=1e-12)


@pytest.mark.parametrize("total", [0, 3, -1, 4.5, math.nan])
def test_a_sum_that_cannot_be_is_refused(total: float) -> None:
    with pytest.raises(ValueError, match="the gates of 3 layers cannot sum to"):
        soft_top_k(torch.zeros(3), total)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        soft_top_k(torch.zeros(3), 1.0, temperature)


LEVELS = torch.tensor([-4.0, -2.0, -0.5, 0.0, 0.7, 2.5, 5.0])


def test_expected_open_is_the_share_of_samples_above_zero() -> None:
    draws = 100_000
    generator = torch.Generator().manual_seed(0)
    shares = [
        float((hard_concrete(torch.full((draws,), float(level)), generator) > 0).double().mean()) for level in LEVELS
    ]
    for level, share in zip(LEVELS, shares, strict=True):
        expected = float(expected_open(level[None]))
        error = math.sqrt(expected * (1 - expected) / draws)
        assert abs(share - expected) < 5 * error + 1e-6
    assert float(expected_open(LEVELS)) == pytest.approx(sum(float(expected_open(one[None])) for one in LEVELS))


def test_samples_follow_the_written_out_transformation() -> None:
    """Eq. 10-11 by numpy on the same uniform numbers; exact zeros and ones occur."""
    scores = torch.zeros(2000)
    samples = hard_concrete(scores, torch.Generator().manual_seed(4)).double().numpy()
    u = torch.rand(2000, generator=torch.Generator().manual_seed(4)).double().numpy()
    concrete = 1 / (1 + (u / (1 - u)) ** (-1 / CONCRETE_TEMPERATURE))
    np.testing.assert_allclose(samples, np.clip(concrete * (STRETCH[1] - STRETCH[0]) + STRETCH[0], 0, 1), atol=1e-4)
    assert (samples == 0).any() and (samples == 1).any() and ((samples > 0) & (samples < 1)).any()


def test_the_seed_alone_decides_a_sample() -> None:
    def sample(seed: int) -> torch.Tensor:
        return hard_concrete(LEVELS, torch.Generator().manual_seed(seed))

    state = torch.get_rng_state()
    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_generator_the_gate_is_its_value_at_test_time() -> None:
    expected = np.clip(1 / (1 + np.exp(-LEVELS.double().numpy())) * 1.2 - 0.1, 0, 1)
    np.testing.assert_allclose(hard_concrete(LEVELS), expected, atol=1e-6)
    assert float(hard_concrete(LEVELS)[0]) == 0 and float(hard_concrete(LEVELS)[-1]) == 1


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=10), st.integers(0, 9))
def test_hard_concrete_gates_lie_in_the_unit_interval_and_rise(scores: list[float], seed: int) -> None:
    s = vector(scores)
    low, high = (hard_concrete(s + shift, torch.Generator().manual_seed(seed)) for shift in (0.0, 1.0))
    assert ((low >= 0) & (low <= 1)).all() and (high >= low).all()
    assert 0 <= float(expected_open(s)) <= len(scores)
