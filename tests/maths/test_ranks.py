"""Rank agreement against scipy, the definition and exact enumeration."""

import math
from itertools import permutations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from keylayers.errors import BadInput
from keylayers.maths.ranks import (
    average_ranks,
    expected_rank_biased_overlap,
    kendall_tau,
    rank_biased_overlap,
    spearman,
)

PAIRS = st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=3, max_size=40)


@settings(deadline=None)
@given(PAIRS)
def test_correlations_equal_scipys_with_ties(pairs):
    a, b = np.array(pairs, dtype=float).T
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        with pytest.raises(BadInput, match="rank nothing"):
            spearman(a, b)
        return
    reference = scipy.stats.spearmanr(a, b)
    found = spearman(a, b)
    assert found.value == pytest.approx(reference.statistic, abs=1e-12)
    assert found.p_value == pytest.approx(max(reference.pvalue, 2 / math.factorial(len(a))), abs=1e-9)
    assert kendall_tau(a, b) == pytest.approx(scipy.stats.kendalltau(a, b).statistic, abs=1e-12)
    np.testing.assert_array_equal(average_ranks(a), scipy.stats.rankdata(a))


def test_kendall_counts_pairs_beyond_one_slice():
    rng = np.random.default_rng(0)
    a = rng.normal(size=700)
    b = a + rng.normal(size=700)
    assert kendall_tau(a, b) == pytest.approx(scipy.stats.kendalltau(a, b).statistic, abs=1e-12)


@pytest.mark.parametrize(("n", "sd"), [(225, 0.0668), (84, 0.110), (24, 0.209)])
def test_null_spread_of_spearman(n, sd):
    assert spearman(np.arange(n, dtype=float), np.arange(n, dtype=float)).null_sd == pytest.approx(sd, abs=5e-4)


def test_null_spread_equals_enumeration():
    a = np.array([0.0, 1.0, 1.0, 2.0, 5.0])
    values = [spearman(a, np.array(b, dtype=float)).value for b in permutations(range(5))]
    assert np.std(values) == pytest.approx(spearman(a, np.arange(5.0)).null_sd)


def test_perfect_order_has_the_p_value_of_one_permutation_and_its_reverse():
    order = np.arange(6.0)
    assert spearman(order, order).p_value == pytest.approx(2 / 720)
    assert spearman(order, -order).value == -1.0
    assert spearman(order[:2], order[:2]).p_value == 1.0


def test_rank_biased_overlap_of_a_worked_example():
    shared = [0, 1, 2, 4, 5]  # by depth, for 1 2 3 4 5 against 2 3 4 1 5
    p = 0.9
    by_hand = shared[-1] / 5 * p**5 + (1 - p) / p * sum(x / d * p**d for d, x in enumerate(shared, start=1))
    assert by_hand == pytest.approx(0.828, abs=5e-4)
    assert rank_biased_overlap(np.array([0, 1, 2, 3, 4]), np.array([1, 2, 3, 0, 4]), p) == pytest.approx(by_hand)


@given(st.permutations(list(range(7))), st.permutations(list(range(7))), st.floats(0.05, 0.95))
def test_rank_biased_overlap_follows_its_definition(a, b, p):
    shared = [len(set(a[:d]) & set(b[:d])) for d in range(1, 8)]
    by_hand = shared[-1] / 7 * p**7 + (1 - p) / p * sum(x / d * p**d for d, x in enumerate(shared, start=1))
    assert rank_biased_overlap(np.array(a), np.array(b), p) == pytest.approx(by_hand)
    assert rank_biased_overlap(np.array(a), np.array(a), p) == pytest.approx(1.0)


def test_chance_level_of_rank_biased_overlap_equals_enumeration():
    fixed = np.arange(5)
    mean = np.mean([rank_biased_overlap(fixed, np.array(other), 0.8) for other in permutations(range(5))])
    assert expected_rank_biased_overlap(5, 0.8) == pytest.approx(mean)


@pytest.mark.parametrize("bad", [[0, 1, 1], [1, 2, 3], [0, 1]])
def test_only_full_rankings_are_compared(bad):
    with pytest.raises(BadInput, match="permutations"):
        rank_biased_overlap(np.array(bad), np.arange(3))


def test_persistence_outside_its_range_and_unequal_lengths_are_refused():
    with pytest.raises(BadInput, match="strictly between 0 and 1"):
        rank_biased_overlap(np.arange(3), np.arange(3), 1.0)
    with pytest.raises(BadInput, match="got 3 and 2"):
        kendall_tau(np.arange(3.0), np.arange(2.0))
