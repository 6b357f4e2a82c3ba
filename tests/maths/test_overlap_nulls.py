"""Stratified and depth nulls against full enumeration of what they permute."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylayers.errors import BadInput
from keylayers.maths.overlap import random_overlap_law
from keylayers.maths.overlap_nulls import depth_law, stratified_law


def law_of(draws, size_a, size_b):
    """Expected Jaccard and upper tails of enumerated overlaps."""
    draws = np.array(draws)
    expected = np.mean(draws / (size_a + size_b - draws))
    return expected, [np.mean(draws >= x) for x in range(draws.max() + 2)]


def assert_law(law, draws, size_a, size_b):
    expected, tails = law_of(draws, size_a, size_b)
    assert law.expected_jaccard == pytest.approx(expected)
    for shared, tail in enumerate(tails):
        assert law.p_value(shared) == pytest.approx(tail, abs=1e-12)
    assert law.smallest_p == pytest.approx(tails[-2], abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("qv")), min_size=2, max_size=8))
def test_stratified_law_equals_enumeration(layers):
    a, b = (np.array([one[i] for one in layers]) for i in (0, 1))
    kinds = [one[2] for one in layers]
    if not (a | b).any():
        return
    places = [[i for i, kind in enumerate(kinds) if kind == which] for which in "qv"]
    choices = [list(combinations(where, int(b[where].sum()))) for where in places]
    draws = [sum(bool(a[i]) for part in pick for i in part) for pick in product(*choices)]
    assert_law(stratified_law(a, b, kinds), draws, int(a.sum()), int(b.sum()))


def test_one_kind_is_the_plain_law():
    rng = np.random.default_rng(0)
    a, b = rng.random(30) < 0.4, rng.random(30) < 0.6
    plain = random_overlap_law(30, int(a.sum()), int(b.sum()))
    strata = stratified_law(a, b, ["q"] * 30)
    assert strata.expected_jaccard == pytest.approx(plain.expected_jaccard)
    assert strata.p_value(9) == pytest.approx(plain.p_value(9))


def test_agreement_by_kind_alone_is_no_evidence():
    kinds = ["down", "q"] * 20
    chosen = np.array([kind == "down" for kind in kinds])
    law = stratified_law(chosen, chosen, kinds)
    assert law.expected_jaccard == 1.0
    assert law.p_value(20) == 1.0 and law.smallest_p == 1.0
    assert random_overlap_law(40, 20).p_value(20) < 1e-10


def test_expected_overlap_is_the_sum_over_kinds():
    a = np.array([1, 1, 0, 0, 1, 0, 0, 0], dtype=bool)
    b = np.array([1, 0, 1, 1, 1, 1, 0, 0], dtype=bool)
    law = stratified_law(a, b, list("qqqqvvvv"))
    assert law.probabilities @ law.counts == pytest.approx(2 * 3 / 4 + 1 * 2 / 4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.data())
def test_depth_law_equals_enumeration_of_shifts(q_blocks, v_blocks, per_block, data):
    blocks = [b for b in range(q_blocks) for _ in range(per_block)] + list(range(0, 2 * v_blocks, 2)) + [None]
    kinds = ["q"] * (q_blocks * per_block) + ["v"] * v_blocks + ["head"]
    bits = st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds))
    a, b = np.array(data.draw(bits)), np.array(data.draw(bits))
    if not (a | b).any():
        return
    q, v = slice(0, q_blocks * per_block), slice(q_blocks * per_block, -1)
    draws = []
    for i, j in product(range(q_blocks), range(v_blocks)):
        shifted = np.concatenate([np.roll(b[q], i * per_block), np.roll(b[v], j), b[-1:]])
        draws.append(int((a & shifted).sum()))
    law = depth_law(a, b, kinds, blocks)
    assert_law(law, draws, int(a.sum()), int(b.sum()))
    assert law.p_value(int((a & b).sum())) >= 1 / (q_blocks * v_blocks) - 1e-12, "the identity shift counts"


def test_smallest_attainable_p_of_distinct_profiles():
    blocks = [b for b in range(8) for _ in range(3)]
    kinds = ["q", "k", "v"] * 8
    a = np.array([block < 3 for block in blocks])
    law = depth_law(a, a, kinds, blocks)
    assert law.smallest_p == pytest.approx(8.0**-3)
    assert law.p_value(9) == pytest.approx(8.0**-3)


def test_smooth_profiles_agree_more_often_than_scattered_ones():
    blocks, kinds = list(range(32)), ["q"] * 32
    early = np.array(blocks) < 16
    shifted = (np.array(blocks) - 3) % 32 < 16
    shared = int((early & shifted).sum())
    assert depth_law(early, shifted, kinds, blocks).p_value(shared) > 50 * random_overlap_law(32, 16).p_value(shared)


def test_blocks_with_unequal_counts_move_layer_by_layer():
    blocks, kinds = [0, 0, 1, 2], ["expert"] * 4
    a, b = np.array([1, 0, 0, 0], dtype=bool), np.array([0, 1, 0, 0], dtype=bool)
    assert_law(depth_law(a, b, kinds, blocks), [0, 1, 0, 0], 1, 1)


def test_lengths_must_agree():
    a = np.array([True, False])
    with pytest.raises(BadInput, match="2, 2, 1"):
        stratified_law(a, a, ["q"])
