"""Overlap laws against the published table, exact integers and full enumeration."""

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import BadInput
from keylayers.maths.overlap import expected_jaccard, jaccard, kuncheva_index, random_overlap_law

TABLE = [  # layers, set size, expected Jaccard, sd, minimum, 5 % and 0.1 % critical values
    (225, 169, 0.6017, 0.0214, 0.502, 0.649, 0.682),
    (225, 112, 0.3320, 0.0298, 0.0, 0.391, 0.436),
    (225, 68, 0.1789, 0.0325, 0.0, 0.248, 0.295),
    (225, 56, 0.1431, 0.0329, 0.0, 0.217, 0.273),
    (225, 22, 0.0525, 0.0340, 0.0, 0.128, 0.222),
    (168, 126, 0.6004, 0.0248, 0.500, 0.658, 0.691),
    (84, 63, 0.6008, 0.0353, 0.500, 0.680, 0.750),
    (42, 32, 0.6169, 0.0490, 0.524, 0.730, 0.829),
    (24, 18, 0.6028, 0.0680, 0.500, 0.800, 0.895),
]


@pytest.mark.parametrize(("n", "k", "expected", "sd", "minimum", "five", "thousandth"), TABLE)
def test_chance_levels_of_equal_sets(n, k, expected, sd, minimum, five, thousandth):
    law = random_overlap_law(n, k)
    assert law.expected_jaccard == pytest.approx(expected, abs=5.1e-5)
    assert law.sd_jaccard == pytest.approx(sd, abs=5.1e-5)
    assert law.minimum_jaccard == pytest.approx(minimum, abs=5.1e-4)
    assert law.minimum_jaccard == pytest.approx(max(0, 2 * k - n) / min(n, 2 * k))
    assert law.critical_jaccard(0.05) == pytest.approx(five, abs=5.1e-4)
    assert law.critical_jaccard(0.001) == pytest.approx(thousandth, abs=5.1e-4)


@pytest.mark.parametrize(("shared", "p"), [(160, 4.6e-30), (156, 4.3e-23), (139, 3.5e-5)])
def test_p_values_of_the_reported_overlaps(shared, p):
    assert random_overlap_law(225, 169).p_value(shared) == pytest.approx(p, rel=0.02)


def test_probabilities_equal_exact_integers():
    law = random_overlap_law(225, 169, 56)
    ways = [math.comb(169, x) * math.comb(56, 56 - x) for x in law.counts.tolist()]
    exact = [float(Fraction(way, math.comb(225, 56))) for way in ways]
    np.testing.assert_allclose(law.probabilities, exact, rtol=1e-10)
    assert law.smallest_p == pytest.approx(exact[-1], rel=1e-10)


@pytest.mark.parametrize(("n", "k", "l"), [(6, 3, 3), (7, 5, 2), (5, 4, 4), (6, 0, 2), (4, 4, 1)])
def test_law_equals_enumeration(n, k, l):  # noqa: E741
    fixed = set(range(k))
    drawn = [len(fixed & set(other)) for other in combinations(range(n), l)]
    law = random_overlap_law(n, k, l)
    by_hand = [x / (k + l - x) for x in drawn]
    assert law.expected_jaccard == pytest.approx(np.mean(by_hand))
    assert law.sd_jaccard == pytest.approx(np.std(by_hand), abs=1e-12)
    for shared in range(n + 1):
        assert law.p_value(shared) == pytest.approx(np.mean([x >= shared for x in drawn]), abs=1e-12)


def test_moments_equal_their_closed_forms():
    n, k = 225, 169
    law = random_overlap_law(n, k)
    mean = law.probabilities @ law.counts
    assert mean == pytest.approx(k * k / n)
    assert law.probabilities @ (law.counts - mean) ** 2 == pytest.approx((k * (n - k)) ** 2 / (n * n * (n - 1)))


def test_no_overlap_of_tiny_sets_is_rare():
    assert random_overlap_law(4, 2).critical_jaccard(0.05) is None


def test_thousands_of_layers_stay_finite():
    law = random_overlap_law(12_000, 9_000)
    assert law.expected_jaccard == pytest.approx(0.6, abs=1e-3)
    assert law.p_value(9_000) < 1e-300
    assert law.minimum_jaccard == 0.5


@given(st.integers(2, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1), st.integers(1, n - 1))))
def test_p_value_falls_as_the_overlap_grows(sizes):
    law = random_overlap_law(*sizes)
    tails = [law.p_value(int(x)) for x in law.counts]
    assert tails[0] == pytest.approx(1) and tails == sorted(tails, reverse=True)
    assert law.minimum_jaccard <= law.expected_jaccard <= law.jaccards[-1] + 1e-12


def test_jaccard_of_masks():
    a, b = np.array([1, 1, 0, 0, 1], dtype=bool), np.array([1, 0, 1, 0, 1], dtype=bool)
    assert jaccard(a, b) == 0.5
    assert jaccard(a, a) == 1.0
    assert jaccard(a, ~a) == 0.0
    with pytest.raises(BadInput, match="empty sets"):
        jaccard(a & ~a, b & ~b)


def test_kuncheva_index_of_reported_overlaps():
    assert kuncheva_index(225, 169, 169, 160) == pytest.approx(0.786, abs=1e-3)
    assert kuncheva_index(225, 169, 169, 139) == pytest.approx(0.287, abs=1e-3)
    assert kuncheva_index(225, 169, 169, 169) == 1.0


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_kuncheva_index_is_cohens_kappa_for_set_and_complement(pairs):
    a, b = np.array(pairs).T
    n, k, l = len(pairs), int(a.sum()), int(b.sum())  # noqa: E741
    by_chance = (k * l + (n - k) * (n - l)) / n**2
    if by_chance == 1:
        with pytest.raises(BadInput, match="no choice"):
            kuncheva_index(n, k, l, int((a & b).sum()))
        return
    kappa = ((a == b).mean() - by_chance) / (1 - by_chance)
    assert kuncheva_index(n, k, l, int((a & b).sum())) == pytest.approx(kappa, abs=1e-9)
    assert kuncheva_index(n, n - k, n - l, int((~a & ~b).sum())) == pytest.approx(kappa, abs=1e-9)


@pytest.mark.parametrize("sizes", [(5, 6, 2), (5, -1, 2), (5, 2, 9)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(BadInput, match=r"must lie in 0\.\.5"):
        random_overlap_law(*sizes)


def test_two_empty_sets_are_refused():
    with pytest.raises(BadInput, match="two empty sets"):
        expected_jaccard(5, 0)
