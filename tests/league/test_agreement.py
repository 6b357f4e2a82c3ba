"""Two leagues beside each other: planted orders, what seeds alone do, and the figures that the documents quote."""

from pathlib import Path

import numpy as np
import pytest

from keylayers.league.agreement import compare_leagues, read_gains, rows, untuned
from keylayers.league.entrants import ENTRANTS
from tests.league.tiny_leagues import league, rising

SEES = [name for name, way in ENTRANTS.items() if way.share is not None]
BLIND = [name for name, way in ENTRANTS.items() if way.share is None]
DOCS = Path(__file__).parents[2] / "docs"


def test_gains_are_read_as_shares_of_what_all_layers_gain(tmp_path):
    found = read_gains(league(tmp_path / "league.json", {"first step": [0.25, 0.5], "Fisher": [0.0, 1.0]}))
    assert set(found) == {"first step", "Fisher"}
    np.testing.assert_allclose(found["first step"], [0.25, 0.5])


def test_one_order_agrees_wholly_and_the_reverse_not_at_all(tmp_path):
    one = read_gains(league(tmp_path / "one.json", rising(SEES + BLIND)))
    other = read_gains(league(tmp_path / "other.json", rising((SEES + BLIND)[::-1])))
    assert [line[2] for line in rows(one, one)] == ["1.00"] * 3
    assert [line[2] for line in rows(one, other)] == ["-1.00"] * 3
    assert [line[1] for line in rows(one, other)] == [str(len(SEES + BLIND)), str(len(SEES)), str(len(BLIND))]


def test_ways_that_one_league_did_not_play_are_left_out(tmp_path):
    one = read_gains(league(tmp_path / "one.json", rising(BLIND[:5])))
    other = read_gains(league(tmp_path / "other.json", rising(BLIND[1:7])))
    assert [line[:2] for line in rows(one, other)] == [("all that both played", "4"), ("that see none", "4")]


def test_between_seeds_stands_what_a_league_repeats_of_itself(tmp_path):
    quiet, loud = rising(BLIND[:6], seeds=4), rising(BLIND[:6], seeds=4)
    for place, name in enumerate(loud):  # two seeds rise, two fall: of six pairs two agree and four are reversed
        loud[name] = [0.02 * place] * 2 + [-0.02 * place + 0.001 * place] * 2
    first, second = (read_gains(league(tmp_path / f"{n}.json", one)) for n, one in enumerate((quiet, loud)))
    assert compare_leagues(first, second, BLIND[:6]).within == pytest.approx((1.0, -1 / 3))


def test_rivals_that_are_drawn_see_no_tuning():
    ways = ["midpoint", "random, same size", "Fisher", "random, kinds of midpoint"]
    assert untuned(ways) == ("random, same size", "Fisher")


def test_the_document_quotes_what_the_command_prints_of_the_leagues_played():
    first, second = (read_gains(DOCS / "runs" / "league" / f"{name}.json") for name in ("stories260K", "llama"))
    text = " ".join((DOCS / "league.md").read_text(encoding="utf-8").split())
    for _, ways, between, p, *within in rows(first, second):
        assert f"| {ways} | {between} | {p} | {within[0]} | {within[1]} |" in text
