"""The policy language: what parses, what it prints, and how each mistake is answered."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import BadSelection, KeylayersError, UnknownName
from keylayers.scores import parse
from keylayers.scores.policy_text import GRAMMAR, Amount, amount

SOUND = [
    "top:30%", "top:12", "bottom:25%", "last:30%", "first:30%", "all", "random:30%:seed=3", "random:5:seed=0",
    "random:30%:seed=3:match=kind", "random:30%:seed=3:match=params", "params:10%", "params:10%:by=density",
    "params:10%:by=kinds",
    "params:10%:by=reverse", "random:params=10%:seed=3", "contiguous:6", "ends", "ends:4-8", "blocks:3,4,8", "above:0",
    "above:-0.5", "suffix:30%", "suffix:30%:keep=90%", "not:bottom:25%", "top:12.5%", "not:all",
]  # fmt: skip


@pytest.mark.parametrize("policy", SOUND)
def test_sound_policies_print_as_written(policy):
    assert str(parse(policy)) == policy
    assert parse(str(parse(policy))) == parse(policy)


def test_every_example_in_the_grammar_is_sound():
    assert {parse(one.example).name for one in GRAMMAR.values()} == set(GRAMMAR)


def test_short_spellings_become_canonical():
    assert str(parse("random:30%")) == "random:30%:seed=0"
    assert str(parse("blocks:8,3-5,4")) == "blocks:3,4,5,8"
    assert str(parse(" top:007 ")) == "top:7"
    assert parse("above:1e-3").argument == 0.001


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("tpo:30%", "unknown policy 'tpo'; did you mean 'top'"),
        ("bottm:25%", "did you mean 'bottom'"),
        ("", "unknown policy ''"),
        ("not:topp:3", "did you mean 'top'"),
        ("random:30%:sead=3", "unknown option of policy 'random' 'sead'; did you mean 'seed'"),
        ("top:30%:seed=3", "unknown option of policy 'top' 'seed'"),
    ],
)
def test_unknown_names_are_answered_with_near_ones(policy, words):
    with pytest.raises(UnknownName, match=words):
        parse(policy)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("top", "does not say how much; for example 'top:30%'"),
        ("top:130%", "'130%' is not between 0%"),
        ("top:0%", "'0%' is not between 0%"),
        ("top:x", "'x' is neither a share such as 30% nor a count such as 12; for example 'top:30%'"),
        ("top:0", "'0' is zero"),
        ("top:-3", "neither"),
        ("top:0.3", "neither"),
        ("top:", "neither"),
        ("top:x%", "not a share"),
        ("top:１２", "neither"),
        ("top:30%:40%", "not option=value"),
        ("all:3", "'all' takes no '3'"),
        ("random", "how many layers or which share of the parameters"),
        ("random:30%:params=10%", "either how many"),
        ("random:params=10%:match=kind", "leave out 'match'"),
        ("random:30%:seed=x", "'x' is not a whole number"),
        ("random:30%:seed=1:seed=2", "twice"),
        ("random:30%:match=size", "'size' is not one of kind, params"),
        ("params:10", "'10' is not a share"),
        ("params:10%:by=size", "not one of score, density"),
        ("contiguous:six", "for example 'contiguous:6'"),
        ("ends:8-4", "not a span of blocks such as 4-8"),
        ("ends:8", "not a span"),
        ("blocks:3,x", "'3,x' is not a whole number; for example 'blocks:3,4,8'"),
        ("blocks:0-99999999", "more blocks than any model"),
        ("above:nan", "not a finite number"),
        ("above:high", "not a number"),
        ("suffix:30%:keep=0%", "not between"),
    ],
)
def test_bad_syntax_is_answered_with_an_example(policy, words):
    with pytest.raises(BadSelection, match=words) as refusal:
        parse(policy)
    assert policy.strip() in str(refusal.value)


def test_a_policy_is_a_text():
    with pytest.raises(BadSelection, match="a policy is a text"):
        parse(0.3)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "total", "count"), [
    ("30%", 35, 10), ("75%", 225, 169), ("25%", 225, 56), ("30%", 225, 68), ("10%", 225, 22), ("75%", 42, 32),
    ("1%", 3, 1), ("50%", 5, 2), ("7%", 150, 10), ("100%", 7, 7), ("12", 35, 12),
])  # fmt: skip
def test_shares_become_the_counts_of_the_published_tables(text, total, count):
    assert amount(text).of(total) == count


@given(st.integers(1, 99), st.integers(1, 2000))
def test_counts_are_the_nearest_whole_number(percent, total):
    count = amount(f"{percent}%").of(total)
    assert 1 <= count <= total
    assert count == 1 or abs(count - Fraction(percent * total, 100)) <= Fraction(1, 2)
    assert Amount.of_share(percent / 100).of(total) == count


def test_more_layers_than_there_are():
    with pytest.raises(BadSelection, match="36 layers asked for, but there are only 35"):
        amount("36").of(35)


@given(st.text(alphabet="topbalrndsm:=%-,.0123456789 nker", max_size=24))
def test_any_text_parses_or_is_refused_in_words(text):
    try:
        spec = parse(text)
    except KeylayersError as refusal:
        assert "nown" in str(refusal) or "policy" in str(refusal)
    else:
        assert parse(str(spec)) == spec
