"""Tiers against cases worked out by hand, brute force and what must hold for any intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import BadScores
from keylayers.scores.tiers import split_tiers
from tests.scores.examples import network, scored

LAYERS = network(5)


def bounded(bounds):
    """Scores in the middle of stated bounds."""
    values = np.asarray(bounds, dtype=float)
    return scored(LAYERS[: len(values)], values.mean(axis=1), bounds=values)


SETS = st.lists(st.tuples(st.integers(-6, 6), st.integers(0, 5)), min_size=1, max_size=12).map(
    lambda pairs: [(low, low + width) for low, width in pairs]
)


def brute_force(bounds, count):
    found = []
    for i, (low, high) in enumerate(bounds):
        others = [one for j, one in enumerate(bounds) if j != i]
        if sum(one[1] >= low for one in others) < count:
            found.append("in")
        elif sum(one[0] > high for one in others) >= count:
            found.append("out")
        else:
            found.append("undecided")
    return tuple(found)


def test_disjoint_intervals_leave_nothing_undecided():
    found = split_tiers(bounded([(0, 1), (6, 7), (2, 3), (4, 5)]), 2)
    assert found.of == ("out", "in", "out", "in")
    assert "2 are certain, 2 of all 4 are out of question" in str(found)


def test_equal_intervals_leave_everything_undecided():
    assert split_tiers(bounded([(0, 1)] * 5), 2).of == ("undecided",) * 5


def test_one_certain_two_that_compete_one_out():
    found = split_tiers(bounded([(9, 10), (4, 6), (5, 7), (0, 1)]), 2)
    assert found.of == ("in", "undecided", "undecided", "out")
    assert str(found) == (
        "of the 2 most critical layers 1 are certain, 2 compete for the other 1 places, 1 of all 4 are out of question"
    )


def test_touching_bounds_decide_nothing():
    assert split_tiers(bounded([(1, 2), (0, 1)]), 1).of == ("undecided", "undecided")


def test_all_places_leave_every_layer_in():
    assert split_tiers(bounded([(0, 9), (1, 2), (3, 4)]), 3).of == ("in",) * 3


def test_intervals_of_repeats_count_too():
    values = np.array([[10.0, 0.0, 5.0], [10.1, 0.1, 5.2], [9.9, -0.1, 4.9]])
    assert split_tiers(scored(LAYERS[:3], values.mean(axis=0), repeats=values), 1).of == ("in", "out", "out")


def test_without_intervals_there_are_no_tiers():
    assert split_tiers(scored(LAYERS[:3], [3, 2, 1]), 1) is None
    assert split_tiers(scored(LAYERS[:3], [3, 2, 1], repeats=[[3, 2, 1]]), 1) is None


@pytest.mark.parametrize("count", [0, -1, 4])
def test_a_count_that_cannot_be_is_refused(count):
    with pytest.raises(BadScores, match=f"tiers of {count} layers: expected between 1 and the 3"):
        split_tiers(bounded([(0, 1), (2, 3), (4, 5)]), count)


@given(SETS, st.data())
def test_they_are_what_brute_force_says_and_hold_the_right_number(bounds, data):
    count = data.draw(st.integers(1, len(bounds)))
    found = split_tiers(bounded(bounds), count)
    assert found.of == brute_force(bounds, count)
    assert found.total("in") <= count <= found.total("in") + found.total("undecided")


@given(SETS, st.data())
def test_the_order_of_layers_does_not_matter(bounds, data):
    count = data.draw(st.integers(1, len(bounds)))
    order = data.draw(st.permutations(range(len(bounds))))
    found = split_tiers(bounded(bounds), count).of
    assert split_tiers(bounded([bounds[i] for i in order]), count).of == tuple(found[i] for i in order)


@given(SETS, st.integers(1, 5))
def test_wider_intervals_never_decide_more(bounds, margin):
    wider = [(low - margin, high + margin) for low, high in bounds]
    before, after = split_tiers(bounded(bounds), 1).of, split_tiers(bounded(wider), 1).of
    assert all(new in (old, "undecided") for old, new in zip(before, after, strict=True))
