import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from keylayers.errors import BadInput
from keylayers.measures.intervals import (
    Interval,
    detectable_difference,
    jackknife,
    paired_bootstrap,
    paired_difference,
    t_interval,
    wilson_interval,
)


def test_t_interval_of_two_values_is_in_closed_form() -> None:
    """One degree of freedom is Cauchy's: its 97.5 % point is tan(0.475 pi); the mean's error is |a - b| / 2."""
    interval = t_interval([1.0, 3.0])
    half = math.tan(0.475 * math.pi)
    assert interval.estimate == 2 and interval.high - 2 == pytest.approx(half) == 2 - interval.low


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=20), st.sampled_from([0.5, 0.9, 0.99]))
def test_t_interval_agrees_with_scipy_and_moves_with_its_data(values: list[float], level: float) -> None:
    interval = t_interval(values, level=level)
    error = float(stats.sem(values))
    if error > 1e-6:
        expected = stats.t.interval(level, len(values) - 1, np.mean(values), error)
        assert (interval.low, interval.high) == pytest.approx(expected)
    moved = t_interval([value + 7 for value in values], level=level)
    assert moved.low == pytest.approx(interval.low + 7, abs=1e-9)
    assert interval.estimate in interval


@pytest.mark.parametrize("values", [[], [1.0], [[1.0, 2.0]], [1.0, math.nan], [1.0, math.inf]])
def test_values_without_an_interval(values: Any) -> None:
    with pytest.raises(BadInput):
        t_interval(values)


def test_impossible_level() -> None:
    with pytest.raises(BadInput, match="level=95"):
        t_interval([1.0, 2.0], level=95)


def test_paired_difference_is_the_paired_t_test() -> None:
    first, second = [3.1, 2.9, 3.4, 3.0, 3.3], [2.8, 2.9, 3.0, 2.7, 3.2]
    difference = paired_difference(first, second)
    expected = stats.ttest_rel(first, second)
    assert difference.p_value == pytest.approx(expected.pvalue)
    assert (difference.interval.low, difference.interval.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert difference.pairs == 5


def test_pairing_removes_what_seeds_do_to_both_arms() -> None:
    seeds = np.array([0.0, 50.0, -30.0, 10.0])
    difference = paired_difference(seeds + np.array([1.0, 1.1, 0.9, 1.0]), seeds)
    assert difference.interval.low > 0.8 and difference.detectable < 0.3


def test_arms_that_never_differ_or_always_alike() -> None:
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).p_value == 1
    always = paired_difference([1.5, 2.5], [1.0, 2.0])
    assert (always.p_value, always.detectable, always.interval.low) == (0.5, 0, 0.5)
    with pytest.raises(BadInput, match="3 and 2 values"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])


@pytest.mark.parametrize("draws", [30, pytest.param(200, marks=pytest.mark.long)])
def test_differences_that_are_equal_but_for_rounding_are_equal(draws: int) -> None:
    """Shares of images: every first is three of 200 above its second, whose last bits differ."""
    random = np.random.default_rng(0)
    for _ in range(draws):
        counts = random.integers(20, 190, 3)
        found = paired_difference((counts + 3) / 200, counts / 200)
        assert (found.p_value, found.detectable) == (0.25, 0.0)
        assert paired_difference(counts / 200 + 0.1, (counts / 2 + 10) / 100).p_value == 1


def test_detectable_difference_of_many_pairs_tends_to_the_normal_formula() -> None:
    z = stats.norm.ppf
    assert detectable_difference(2.0, 10**6) == pytest.approx((z(0.975) + z(0.8)) * 2.0 / 1000, rel=1e-4)


@pytest.mark.parametrize("pairs", [2, 3, 5, 10])
def test_detectable_difference_is_found_as_often_as_stated(pairs: int) -> None:
    random = np.random.default_rng(0)
    shift = detectable_difference(1.0, pairs, power=0.8)
    found = stats.ttest_1samp(random.normal(shift, 1.0, size=(20_000, pairs)), 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 20_000))


@pytest.mark.parametrize("pairs", [3, 8, 30])
def test_detectable_difference_has_its_power_under_the_noncentral_t(pairs: int) -> None:
    shift = detectable_difference(1.0, pairs, alpha=0.01, power=0.9) * math.sqrt(pairs)
    critical = stats.t.ppf(0.995, pairs - 1)
    power = stats.nct.sf(critical, pairs - 1, shift)  # the other tail is below 1e-6, and NaN in scipy
    assert power == pytest.approx(0.9, abs=1e-5)


def test_detectable_difference_scales_with_the_spread_and_needs_two_pairs() -> None:
    assert detectable_difference(3.0, 4) == pytest.approx(3 * detectable_difference(1.0, 4))
    assert detectable_difference(0.0, 4) == 0
    with pytest.raises(BadInput, match="1 pairs"):
        detectable_difference(1.0, 1)


def test_bootstrap_estimate_is_the_difference_of_token_weighted_means() -> None:
    first, second, tokens = np.array([2.0, 9.0, 4.0]), np.array([1.0, 9.5, 2.0]), np.array([1, 4, 3])
    interval = paired_bootstrap(first, second, tokens)
    assert interval.estimate == pytest.approx(first.sum() / 8 - second.sum() / 8)
    assert interval.low <= interval.estimate <= interval.high
    swapped = paired_bootstrap(second, first, tokens)
    assert swapped.estimate == -interval.estimate


def test_bootstrap_is_the_same_for_the_same_seed() -> None:
    random = np.random.default_rng(0)
    first, second, tokens = random.gamma(2, size=50), random.gamma(2, size=50), random.integers(1, 9, size=50)
    assert paired_bootstrap(first, second, tokens, seed=3) == paired_bootstrap(first, second, tokens, seed=3)
    assert paired_bootstrap(first, second, tokens, seed=3) != paired_bootstrap(first, second, tokens, seed=4)


def test_bootstrap_of_equal_lengths_agrees_with_the_t_interval() -> None:
    random = np.random.default_rng(1)
    first, second = random.normal(3, 1, 400), random.normal(2, 1, 400)
    boot, student = paired_bootstrap(first, second, np.ones(400, dtype=int)), t_interval(first - second)
    assert (boot.low, boot.high) == pytest.approx((student.low, student.high), abs=0.02)


def test_bootstrap_covers_as_often_as_stated() -> None:
    """Examples of 1 to 20 tokens, each token 0.3 nats apart in truth, with noise per example."""
    random, hits = np.random.default_rng(2), 0
    for seed in range(150):
        tokens = random.integers(1, 21, size=60)
        noise = random.normal(0, 1, size=60) * np.sqrt(tokens)
        hits += 0.3 in paired_bootstrap(0.3 * tokens + noise, np.zeros(60), tokens, resamples=499, seed=seed)
    assert hits / 150 == pytest.approx(0.95, abs=0.07)


def test_bootstrap_of_a_constant_difference_is_a_point() -> None:
    tokens = np.array([1, 2, 3])
    assert paired_bootstrap(tokens * 1.5, tokens * 1.0, tokens) == Interval(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("first", "second", "tokens"),
    [
        ([1.0, 2.0], [1.0], [1, 1]),
        ([1.0], [1.0], [1]),
        ([1.0, math.nan], [1.0, 1.0], [1, 1]),
        ([1.0, 2.0], [1.0, 1.0], [0, 0]),
    ],
)
def test_examples_that_cannot_be_compared(first: list[float], second: list[float], tokens: list[int]) -> None:
    with pytest.raises(BadInput):
        paired_bootstrap(np.array(first), np.array(second), np.array(tokens))


@given(st.integers(1, 500), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipy_and_stays_a_share(trials: int, data: Any, level: float) -> None:
    successes = data.draw(st.integers(0, trials))
    interval = wilson_interval(successes, trials, level=level)
    expected = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= interval.low <= interval.estimate <= interval.high <= 1


def test_wilson_needs_trials() -> None:
    for successes, trials in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(BadInput):
            wilson_interval(successes, trials)


def test_intervals_print_themselves() -> None:
    assert str(Interval(0.5, 0.25, 0.75)) == "0.5 [0.25, 0.75]" and 0.3 in Interval(0.5, 0.25, 0.75)


def test_a_jackknife_over_independent_values_is_the_t_interval_and_over_pairs_it_knows_they_are_shared() -> None:
    values = [0.3, 0.9, 0.4, 0.7]
    alone, plain = jackknife(values, [[place] for place in range(4)]), t_interval(values)
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high))
    pairs = list(itertools.combinations(range(6), 2))
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):  # pair means of independent draws: their mean is the draws' own
        draws = rng.normal(size=6)
        held += 0.0 in jackknife([(draws[i] + draws[j]) / 2 for i, j in pairs], pairs)
    assert 0.91 < held / 400 < 0.985
    assert jackknife([0.5], [(0, 1)]).high == math.inf
