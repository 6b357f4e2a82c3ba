"""Correlations under shifted blocks: brute force by scipy, the smallest p, planted agreement, bad input."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from keylayers.errors import BadInput
from keylayers.maths.shifts import agreement_test, pooled_test, shift_test, shifted_correlations


def _profiles(count, blocks, seed=0):
    return [np.random.default_rng((seed, i)).normal(size=blocks).round(1) for i in range(count)]  # rounded: ties


def test_each_shift_is_the_rank_correlation_of_the_moved_profile():
    a, b = _profiles(2, 9)
    expected = [stats.spearmanr(a, np.roll(b, shift)).statistic for shift in range(9)]
    assert shifted_correlations(a, b) == pytest.approx(expected, abs=1e-12)


def test_agreement_counts_every_combination_of_shifts():
    profiles = _profiles(3, 5, seed=4)
    values = []
    for shifts in product(range(5), repeat=2):
        moved = [np.roll(one, shift) for one, shift in zip(profiles, (0, *shifts), strict=True)]
        values.append(np.mean([stats.spearmanr(*pair).statistic for pair in combinations(moved, 2)]))
    found = agreement_test(profiles)
    assert found.value == pytest.approx(values[0]) and found.smallest_p == 1 / 25
    assert found.p_high == pytest.approx(np.mean(np.array(values) >= values[0] - 1e-9))
    assert found.p_low == pytest.approx(np.mean(np.array(values) <= values[0] + 1e-9))


def test_a_planted_change_point_agrees_and_a_moved_one_does_not():
    bump = np.exp(-0.5 * (np.arange(12) - 4.3) ** 2)
    same = agreement_test([bump, 2 * bump + 1, bump**2])
    assert same.value == pytest.approx(1) and same.p_high == same.smallest_p == 1 / 144
    moved = shift_test(bump, [np.roll(bump, 6)])
    assert moved.value < 0 and moved.p_high > 0.5 and moved.smallest_p == 1 / 12
    assert shift_test(bump, [-bump]).two_sided == pytest.approx(2 / 12)


def test_one_shift_for_all_domains_keeps_the_smallest_p_whatever_their_number():
    a, b = _profiles(2, 12, seed=1)
    once, often = shift_test(a, [b]), shift_test(a, [b] * 5)
    assert often == once and once.smallest_p == 1 / 12


def test_models_are_shifted_apart_so_their_number_counts():
    bump = np.sin(np.arange(6))
    tables = [shifted_correlations(bump, bump)] * 3
    found = pooled_test(tables)
    assert found.value == pytest.approx(1) and found.smallest_p == found.p_high == pytest.approx(1 / 216)
    assert 0 < found.needed < 1


@pytest.mark.parametrize("blocks", [5, 7])
def test_what_is_needed_is_the_least_correlation_whose_p_is_low(blocks):
    profiles = _profiles(3, blocks, seed=9)
    found = agreement_test(profiles)
    # every shift of the others is a study of its own, over the same values
    every = []
    for shifts in product(range(blocks), repeat=2):
        every.append(agreement_test([profiles[0], *(np.roll(p, s) for p, s in zip(profiles[1:], shifts, strict=True))]))
    assert found.needed == pytest.approx(min((one.value for one in every if one.p_high < 0.05), default=np.inf))
    assert (blocks == 5) == np.isinf(found.needed_two_sided)  # 25 shifts, the least two-sided p is 0.08
    if blocks == 7:
        sizes = [abs(one.value) for one in every if one.two_sided >= 0.05]
        assert max(sizes) != found.needed_two_sided
        assert all(one.two_sided < 0.05 for one in every if abs(one.value) >= found.needed_two_sided - 1e-9)
        assert any(
            abs(one.value - found.needed_two_sided) < 1e-9 or abs(one.value + found.needed_two_sided) < 1e-9
            for one in every
        )


def test_nothing_is_enough_where_the_shifts_are_too_few():
    bump = np.exp(-0.5 * (np.arange(20) - 4.3) ** 2)
    assert shift_test(bump[:12], [bump[:12]]).needed == np.inf == shift_test(bump, [bump]).needed
    longer = np.exp(-0.5 * (np.arange(24) - 4.3) ** 2)
    one = shift_test(longer, [longer])
    assert one.needed == one.value == pytest.approx(1) and one.p_high < 0.05 and one.needed_two_sided == np.inf


@pytest.mark.parametrize(
    ("profiles", "said"),
    [
        ([np.arange(4.0)], "two or more profiles, got 1"),
        ([np.arange(4.0), np.arange(5.0)], "same 3 or more blocks"),
        ([np.arange(2.0)] * 2, "same 3 or more blocks"),
        ([np.ones(4), np.arange(4.0)], "the same at every block"),
        ([np.arange(12.0)] * 9, "give fewer"),
    ],
)
def test_bad_profiles_are_told(profiles, said):
    with pytest.raises(BadInput, match=said):
        agreement_test(profiles)
