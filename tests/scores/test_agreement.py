"""Agreement: the reported overlaps with their nulls, refusals, and that no Jaccard index is ever printed alone."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import BadScores, UnknownName
from keylayers.maths.overlap import kuncheva_index
from keylayers.scores import agreement, agreements
from tests.scores.examples import network, noise, scored

SEVEN = network(32)  # 225 layers


def with_top(layers, top, seed=0):
    """Scores whose top set is `top`, otherwise random."""
    values = np.random.default_rng(seed).random(len(layers))
    values[list(top)] += 1
    return scored(layers, values)


def sharing(shared):
    """Two rankings of 225 layers whose top 169 share that many."""
    order = np.random.default_rng(1).permutation(225)
    first = order[:169]
    second = np.concatenate([first[:shared], order[169 : 169 + 169 - shared]])
    return with_top(SEVEN, first, 2), with_top(SEVEN, second, 3)


@pytest.mark.parametrize(
    ("shared", "top", "bottom", "kuncheva", "p"),
    [
        (160, 160 / 178, 47 / 65, 0.79, 4.6e-30),
        (156, 156 / 182, 43 / 69, 0.69, 4.3e-23),
        (139, 139 / 199, 26 / 86, 0.29, 3.5e-5),
    ],
)
def test_the_reported_overlaps(shared, top, bottom, kuncheva, p):
    found = agreement(*sharing(shared), acted="bottom")
    assert found.of_acted is found.bottom and found.bottom.size == 56 and found.top.size == 169
    assert found.top.jaccard == pytest.approx(top)
    assert found.bottom.jaccard == pytest.approx(bottom)
    assert found.top.kuncheva == pytest.approx(kuncheva, abs=0.006)
    assert found.bottom.kuncheva == pytest.approx(found.top.kuncheva)
    assert found.top.p_value() == pytest.approx(p, rel=0.02)
    for null in ("random", "kind", "depth"):
        assert found.bottom.p_value(null) == pytest.approx(found.top.p_value(null), rel=1e-6), (
            "complements say the same"
        )
    assert found.top.expected == pytest.approx(0.6017, abs=5e-5)
    assert found.top.random.sd_jaccard == pytest.approx(0.0214, abs=5e-5)
    assert found.top.minimum == pytest.approx(0.502, abs=5e-4)
    assert found.spearman.null_sd == pytest.approx(0.0668, abs=5e-5)


def test_equal_rankings_agree_entirely():
    found = agreement(noise(SEVEN), noise(SEVEN))
    assert (found.top.jaccard, found.top.kuncheva, found.spearman.value, found.kendall) == pytest.approx((1, 1, 1, 1))
    assert found.rbo == pytest.approx(1)
    assert found.top.p_value("depth") == pytest.approx(found.top.smallest_p("depth"))
    assert found.top.p_value("random") == pytest.approx(found.top.smallest_p("random"))


def test_agreement_by_kind_alone_is_seen_through():
    rank = {kind: i for i, kind in enumerate(dict.fromkeys(layer.kind for layer in SEVEN))}
    rng = np.random.default_rng(0)
    a, b = (scored(SEVEN, [rank[layer.kind] + 0.5 * rng.random() for layer in SEVEN]) for _ in range(2))
    found = agreement(a, b, 0.3)
    assert found.top.p_value("random") < 1e-20
    assert found.top.p_value("kind") > 0.01
    assert found.top.kind.expected_jaccard > 2 * found.top.expected


def test_agreement_by_depth_alone_is_seen_through():
    layers = network(24, head=False, kinds={"block": 1})
    wave = np.sin(2 * np.pi * np.arange(24) / 24)
    found = agreement(scored(layers, wave), scored(layers, np.roll(wave, 2)), 0.5)
    assert found.top.p_value("random") < 0.002
    assert found.top.p_value("depth") > 0.1
    assert found.top.smallest_p("depth") == pytest.approx(1 / 24)


@given(st.integers(0, 200), st.floats(0.1, 0.9))
def test_order_of_the_two_does_not_matter(seed, fraction):
    layers = network(3)
    a, b = noise(layers, seed), noise(layers, seed + 1)
    one, two = agreement(a, b, fraction), agreement(b, a, fraction)
    assert one.top.jaccard == two.top.jaccard and one.rbo == pytest.approx(two.rbo)
    assert one.spearman.value == pytest.approx(two.spearman.value) and one.kendall == pytest.approx(two.kendall)
    for null in ("random", "kind", "depth"):
        assert one.top.p_value(null) == pytest.approx(two.top.p_value(null))


def test_random_rankings_reach_small_p_values_as_seldom_as_they_should():
    layers = network(5)
    found = [agreement(noise(layers, 2 * i), noise(layers, 2 * i + 1), 0.5).top for i in range(120)]
    for null in ("random", "kind", "depth"):
        rejected = np.mean([one.p_value(null) <= 0.05 for one in found])
        assert rejected <= 0.1, null
    assert np.mean([one.jaccard for one in found]) == pytest.approx(found[0].expected, abs=0.02)


def test_ties_across_the_cut_are_told():
    layers = network(2)
    flat = scored(layers, [5, 4, 3] + [0] * 12)
    found = agreement(flat, noise(layers), 0.4)
    assert found.ties == (12, 0)
    assert "decided by a draw: 12 and 0" in str(found)
    assert "ties" not in str(agreement(noise(layers), noise(layers, 1)))


def test_no_jaccard_index_stands_alone():
    for found in (agreement(*sharing(139), acted="bottom"), agreement(*sharing(139))):
        for row in found.rows():
            if "Jaccard" in row[0]:
                assert re.match(r"0\.\d{3} \+- 0\.\d{3} \(min 0\.\d{3}; 5 % at 0\.\d{3}\)", row[2]) and row[3]
        assert "smallest attainable" in str(found)
    assert "0.143 +- 0.033" in str(agreement(*sharing(139), acted="bottom"))
    table = str(agreements([*sharing(139), noise(SEVEN)]))
    header = next(line for line in table.splitlines() if "Jaccard" in line)
    assert re.search(r"Jaccard +chance", header)
    assert "smallest p attainable along depth" in table


def test_scores_of_different_layers_name_what_differs():
    with pytest.raises(BadScores, match=r"only the first has none; only the second has layers\.2\.attn\.k, .*7 in all"):
        agreement(noise(network(2)), noise(network(3)))
    with pytest.raises(BadScores, match="different orders: position 0"):
        agreement(noise(network(2)), noise(network(2)[::-1]))


def test_rankings_that_rank_nothing_and_choices_that_leave_none_are_refused():
    layers = network(2)
    with pytest.raises(BadScores, match="all scores of 'flat' are 0"):
        agreement(noise(layers), scored(layers, np.zeros(15)), labels=("a", "flat"))
    for fraction in (0.0, 1.0, -1.0, 1.5, float("nan")):
        with pytest.raises(BadScores, match="strictly between 0 and 1"):
            agreement(noise(layers), noise(layers, 1), fraction)
    with pytest.raises(BadScores, match="takes all 2 layers"):
        agreement(noise(layers[:2]), noise(layers[:2], 1), 0.9)
    with pytest.raises(UnknownName, match="did you mean 'top'"):
        agreement(noise(layers), noise(layers, 1), acted="tops")
    with pytest.raises(UnknownName, match="null"):
        agreement(noise(layers), noise(layers, 1)).top.p_value("kinds of")


def test_a_table_of_several_rankings():
    several = [noise(SEVEN, 0), noise(SEVEN, 0), noise(SEVEN, 1), noise(SEVEN, 2)]
    table = agreements(several, acted="bottom", labels=["a", "b", "c", "d"])
    assert [pair.labels for pair in table.pairs][:3] == [("a", "b"), ("a", "c"), ("a", "d")]
    for quantity in ("jaccard", "kuncheva", "spearman", "kendall", "rbo"):
        matrix = table.matrix(quantity)
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_allclose(np.diag(matrix), 1)
        assert matrix[0, 1] == pytest.approx(1) and matrix[0, 2] < 0.5
    assert table.matrix("expected")[2, 1] == pytest.approx(0.1431, abs=5e-5)
    raw = np.array([pair.bottom.p_value() for pair in table.pairs])
    adjusted = table.p_values()
    assert adjusted[0] == pytest.approx(6 * raw[0]) and (adjusted >= raw).all()
    assert table.stability.value == pytest.approx(np.mean([pair.bottom.kuncheva for pair in table.pairs]))
    assert len(table.rows()) == 6 and "6 of" not in str(table)
    with pytest.raises(UnknownName, match="did you mean 'jaccard'"):
        table.matrix("jacard")


def test_stability_does_not_depend_on_the_side():
    several = [noise(SEVEN, i) for i in range(3)]
    assert agreements(several).stability.value == pytest.approx(agreements(several, acted="bottom").stability.value)


def test_two_rankings_make_a_table_too():
    table = agreements(sharing(139))
    assert table.stability.value == pytest.approx(kuncheva_index(225, 169, 169, 139))
    assert table.labels == ("by_hand (1)", "by_hand (2)")
    with pytest.raises(BadScores, match="two or more rankings, got 1"):
        agreements([noise(SEVEN)])
    with pytest.raises(BadScores, match="1 labels were given for 2"):
        agreements(sharing(139), labels=["a"])
