"""Settled rankings: closed forms of the bounds, and planted courses of rankings that must or must not settle."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylayers.errors import BadScores
from keylayers.maths.ranks import spearman
from keylayers.scores.rank_convergence import NOISE, Measured, Rule, has_settled, moved, overlap_target
from tests.scores.examples import network, scored

LAYERS = network(6)  # 43 layers
FAST = Rule(draws=100)


def look(truth, noise=0.0, repeats=8, seed=0):
    """Scores as batches give them: the truth, and noise of its own in every repeat."""
    found = truth + noise * np.random.default_rng(seed).normal(size=(repeats, len(LAYERS)))
    return scored(LAYERS, found.mean(0), repeats=found)


def truth(seed=0):
    return np.random.default_rng(1000 + seed).normal(size=len(LAYERS))


def course(looks, rule=FAST):
    """The first look (from 1) by which the ranking has settled; None where it never does."""
    moves = []
    for earlier, later in pairwise(looks):
        moves.append(moved(earlier, later, rule))
        if has_settled(moves, rule):
            return len(moves) + 1
    return None


# What must settle, and what must not.


@given(st.integers(0, 10**6), st.integers(2, 9))
@settings(max_examples=8, deadline=None)
def test_equal_rankings_without_noise_agree_wholly_and_settle_at_once(seed, repeats):
    same = look(truth(seed), repeats=repeats)
    one = moved(same, same, FAST)
    for index in (one.spearman, one.kuncheva):
        assert (index.value, index.low, index.ceiling, index.halves) == pytest.approx((1, 1, 1, 1))
    assert one.reached and one.in_reach
    assert course([same] * 4) == 3  # two successive pairs take three looks
    assert course([same] * 4, replace(FAST, in_a_row=1)) == 2


def test_a_ranking_that_moves_and_then_stands_settles_two_looks_after_it_stopped():
    looks = [look(truth(min(number, 3)), 0.05) for number in range(8)]
    assert course(looks) == 6  # the fourth ranking stands, at looks 4, 5 and 6


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_ranking_that_drifts_never_settles(seed, noise):
    steps = [truth(10 * seed + number) for number in range(8)]
    walk = np.cumsum([steps[0], *(0.8 * step for step in steps[1:])], axis=0)
    assert course([look(values, noise, seed=n) for n, values in enumerate(walk)]) is None


@pytest.mark.parametrize("seed", range(5))
def test_mere_noise_never_settles_whether_fresh_at_each_look_or_shared_by_all(seed):
    nothing = np.zeros(len(LAYERS))
    assert course([look(nothing, 1.0, seed=100 * seed + number) for number in range(8)]) is None
    shared = look(nothing, 1.0, seed=seed)  # the same batches at every look: their noise is no agreement
    assert course([shared] * 8) is None
    one = moved(shared, shared, FAST)
    assert one.spearman.value == pytest.approx(1) and not one.in_reach


def test_a_ranking_of_nothing_agrees_with_nothing():
    """LoRA starts at a change of zero: a first look may find every score 0."""
    flat = look(np.zeros(len(LAYERS)))
    assert course([flat] * 8) is None
    one = moved(flat, look(truth()), FAST)
    assert (one.spearman.value, one.spearman.low, one.kuncheva.low) == (0, 0, 0) and one.spearman.ceiling > 0.9
    assert moved(flat, flat, FAST).kuncheva.halves == 0


def test_a_ranking_that_stands_settles_at_its_own_ceiling_where_its_batches_allow_no_more():
    noisy = look(truth(), 1.0)
    one = moved(noisy, noisy, FAST)
    assert 0.5 < one.kuncheva.ceiling < 0.85 and one.kuncheva.needed == one.kuncheva.ceiling
    assert course([noisy] * 4) == 3
    assert course([look(truth(seed % 2), 1.0, seed=seed) for seed in range(8)]) is None  # one that does not stand


@given(*(st.floats(-1, 1) for _ in range(3)), st.floats(0.01, 1))
def test_what_is_needed_is_the_target_or_a_ceiling_that_is_no_noise(value, low, ceiling, target):
    one = Measured(value, low, ceiling, halves=0.0, target=target)
    expected = ceiling if NOISE <= ceiling <= target else min(target, NOISE) if ceiling < NOISE else target
    assert one.needed == expected and one.reached == (low >= expected)
    assert one.in_reach == (ceiling >= min(target, NOISE))


# What the figures are.


@given(st.integers(0, 10**6), st.floats(0.01, 3.0), st.integers(2, 9))
@settings(max_examples=8, deadline=None)
def test_the_ceiling_is_the_bound_of_a_ranking_with_itself(seed, noise, repeats):
    same = look(truth(seed), noise, repeats, seed)
    one = moved(same, same, FAST)
    for index in (one.spearman, one.kuncheva):
        assert index.low == index.ceiling <= index.value
        assert index.low >= -1 and index.value == pytest.approx(1) and index.halves <= 1 + 1e-12


@given(st.integers(0, 10**6))
@settings(max_examples=6, deadline=None)
def test_a_move_changes_neither_with_the_unit_of_the_scores_nor_with_the_order_of_the_layers(seed):
    first, second = look(truth(seed), 0.5, seed=seed), look(truth(seed + 1), 0.5, seed=seed + 1)
    one = moved(first, second, FAST)
    doubled = scored(LAYERS, 4 * second.values, repeats=4 * second.repeats)
    assert moved(first, doubled, FAST) == one  # a power of two: exactly
    turn = np.random.default_rng(seed).permutation(len(LAYERS))

    def turned(scores):
        return scored([LAYERS[i] for i in turn], scores.values[turn], repeats=scores.repeats[:, turn])

    other = moved(turned(first), turned(second), FAST)
    assert other.kuncheva == one.kuncheva
    assert other.spearman.low == pytest.approx(one.spearman.low, abs=1e-12)


@pytest.mark.parametrize(("level", "low"), [(0.05, -1.0), (0.2, 0.0), (0.5, 1.0)])
def test_the_bound_is_the_quantile_of_the_exact_law_of_resamples(level, low):
    """Seven batches say up, one says down three times as loud. Of 8 drawn, up to one loud: up; two: a tie; more: down.

    The number of loud ones is binomial(8, 1/8): 0.736 up, 0.196 tied, 0.067 down. Two independent resamples disagree
    wholly with 0.099 = 2 x 0.736 x 0.067 and agree wholly with 0.547; what is left involves a tie, which counts 0.
    """
    order = np.arange(len(LAYERS), dtype=float)
    repeats = np.stack([order] * 7 + [-3 * order])
    side = scored(LAYERS, repeats.mean(0), repeats=repeats)
    assert moved(side, side, Rule(level=level, draws=2000)).spearman.low == pytest.approx(low)


def test_halves_of_two_repeats_are_the_repeats():
    two = look(truth(), 0.7, repeats=2)
    assert moved(two, two, FAST).spearman.halves == pytest.approx(spearman(*two.repeats).value)


def test_the_target_of_the_overlap_is_the_nearest_step_and_forgives_one_exchanged_layer_unless_it_leaves_little():
    assert overlap_target(0.9, 35, 10) == pytest.approx(0.86)  # 1 - 35 / (10 x 25)
    assert overlap_target(0.8, 35, 10) == 0.8
    assert overlap_target(0.9, 85, 26) == pytest.approx(1 - 2 * 85 / (26 * 59))  # 0.889: two exchanges, not one
    assert overlap_target(0.9, 225, 68) == pytest.approx(1 - 5 * 225 / (68 * 157))  # 0.895
    assert overlap_target(0.9, 6, 2) == 0.9  # one exchanged of two leaves 0.25
    assert overlap_target(0.3, 22, 7) == 0.3 and overlap_target(0.01, 4, 3) == 0.01  # never above the target, nor lost
    swapped = truth()
    order = np.argsort(-swapped)
    last_in, first_out = order[12], order[13]  # the top 30 % are 13 of 43
    swapped[[last_in, first_out]] = swapped[[first_out, last_in]]
    one = moved(look(truth()), look(swapped), FAST)
    assert one.kuncheva.low == pytest.approx(1 - 43 / (13 * 30)) and one.kuncheva.low < 0.9 and one.reached
    swapped[[order[11], order[14]]] = swapped[[order[14], order[11]]]
    assert not moved(look(truth()), look(swapped), FAST).kuncheva.reached


@given(st.integers(2, 300), st.data(), st.floats(0.001, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_target_of_the_overlap_is_above_chance_and_at_most_the_target(layers, data, target):
    count = data.draw(st.integers(1, layers - 1))
    assert min(target, 0.5) <= overlap_target(target, layers, count) <= target


def test_the_same_rule_gives_the_same_figures_and_another_seed_others():
    first, second = look(truth(0), 0.5), look(truth(0), 0.5, seed=1)
    assert moved(first, second, FAST) == moved(first, second, FAST)
    assert moved(first, second, FAST) != moved(first, second, replace(FAST, seed=1))


# Bad input.


def test_scores_without_repeats_or_of_other_layers_are_refused():
    good = look(truth())
    with pytest.raises(BadScores, match="at least two batches"):
        moved(good, scored(LAYERS, truth()), FAST)
    with pytest.raises(BadScores, match="at least two batches"):
        moved(scored(LAYERS, truth(), repeats=truth()[None]), good, FAST)
    other = network(5)
    with pytest.raises(BadScores, match="two checkpoints"):
        moved(good, scored(other, truth()[: len(other)], repeats=good.repeats[:, : len(other)]), FAST)
