"""Stability of several sets and Holm's correction, against their definitions and simulation."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from keylayers.errors import BadInput
from keylayers.maths.overlap import kuncheva_index
from keylayers.maths.stability import harmonic_mean_p, holm, set_stability


@given(st.integers(2, 6), st.integers(1, 9), st.integers(0, 1000))
def test_stability_of_equal_sizes_is_the_mean_kuncheva_index(rankings, k, seed):
    rng = np.random.default_rng(seed)
    masks = np.array([np.isin(np.arange(10), rng.choice(10, k, replace=False)) for _ in range(rankings)])
    pairs = [kuncheva_index(10, k, k, int((a & b).sum())) for a, b in combinations(masks, 2)]
    assert set_stability(masks).value == pytest.approx(np.mean(pairs), abs=1e-9)


def test_equal_sets_are_perfectly_stable():
    masks = np.tile(np.arange(12) < 5, (4, 1))
    found = set_stability(masks)
    assert (found.value, found.low, found.high) == (pytest.approx(1), None, None)
    assert set_stability(np.tile(np.arange(12) < 5, (6, 1))).low is None  # equal sets do not tell how far they vary


def test_fewer_than_five_sets_have_no_interval():
    masks = np.array([np.roll(np.arange(9) < 4, shift) for shift in range(5)])
    assert [set_stability(masks[:count]).low is None for count in (2, 3, 4, 5)] == [True, True, True, False]


@pytest.mark.parametrize("count", [5, 10, 40])
def test_interval_covers_the_true_stability(count):
    """Sets that keep 20 core layers with probability .8 each and 40 others with .2: the population value is known."""
    rates = np.array([0.8] * 20 + [0.2] * 40)
    share = rates.mean()
    truth = 1 - (rates * (1 - rates)).mean() / (share * (1 - share))
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        found = set_stability(rng.random((count, 60)) < rates)
        covered += found.low <= truth <= found.high
    assert covered / 200 >= 0.91


def test_sets_without_choice_are_refused():
    with pytest.raises(BadInput, match="two or more"):
        set_stability(np.array([[True, False]]))
    with pytest.raises(BadInput, match="no choice"):
        set_stability(np.ones((3, 4), dtype=bool))


def test_holm_on_a_worked_example():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.6, 0.7])), [1.0, 1.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_order_and_lies_between_raw_and_bonferroni(raw):
    p = np.array(raw)
    adjusted = holm(p)
    assert (adjusted >= p - 1e-15).all()
    assert (adjusted <= np.minimum(1, p * p.size) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_p_values_together_are_valid_under_dependence_and_see_what_all_say() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(4000, 1)) * 0.7 + rng.normal(size=(4000, 10)) * (1 - 0.49) ** 0.5
    p_values = stats.norm.sf(shared)  # ten dependent tests of true hypotheses
    assert np.mean([harmonic_mean_p(row) <= 0.05 for row in p_values]) <= 0.05
    assert harmonic_mean_p(np.array([0.2])) == 0.2 and harmonic_mean_p(np.array([0.01, 1.0])) == 0.02
    assert harmonic_mean_p(np.full(10, 1e-4)) == pytest.approx(1e-4 * math.e * math.log(10))
    one = harmonic_mean_p(np.array([1e-9, *[1.0] * 9]))
    assert one == pytest.approx(math.e * math.log(10) * 1e-8, rel=1e-6) and harmonic_mean_p(np.ones(10)) == 1
