"""The pages of harden, cleanse and screen: what their bars show is what was found."""

import pytest

from keylayers.report.collect import collect_runs
from keylayers.report.page import render
from keylayers.report.vision import answer_of
from keylayers.report.vision_bars import BINS, MOST, blame, by_class, by_suspicion, epochs
from keylayers.runs import open_run, write_json
from tests.report.test_page import checked

FOUND = {
    "harden": {
        "selections": [[0, ["layer1.conv1"]], [2, ["layer2.conv1"]]],
        "before": {"clean": 0.9, "worst case": 0.2},
        "last": {"clean": 0.8, "worst case": 0.3},
        "best": {"clean": 0.85, "worst case": 0.4},
        "best_epoch": 1,
        "losses": [2.0, 1.0, 0.5],
        "watched": [0.25, 0.5, 0.375],
        "images": 100,
        "trained": 1234,
        "untouched": 5,
        "warnings": ["a square finds what gradients do not"],
    },
    "cleanse": {
        "skips": ["a.skip"],
        "scores": {"b.skip": 0.05, "a.skip": 0.2, "c.skip": -0.1},
        "figures": {"clean accuracy": [0.9, 0.8]},
        "images": 25,
        "trained": 10,
        "untouched": 5,
        "warnings": [],
    },
    "screen": {
        "images": 6,
        "promise": "flags at most 0.05",
        "layers": ["layer1"],
        "class": [0, 0, 1, 1, 1, 2],
        "suspicion": [0.0, 12.0, 1.0, 2.0, 11.5, 0.5],
        "flagged": [False, True, False, False, True, False],
    },
}


@pytest.fixture(params=FOUND)
def a_run(request, tmp_path):
    """A finished run with the figures above."""
    file = "flags.json" if request.param == "screen" else "results.json"
    with open_run(tmp_path / "run", request.param, {"inputs": {"model": "m", "images": "x.npz"}}) as run:
        write_json(run.path / file, FOUND[request.param])
    return collect_runs(tmp_path / "run").runs[0]


def flat(text: str) -> str:
    """As `checked` has a page's words."""
    return " ".join(text.split())


def test_every_page_has_its_bars_and_says_what_it_does_not_show(a_run):
    words = checked(render(collect_runs(a_run.path))).words
    found = answer_of(a_run)
    assert found.bars and found.limits
    for text in (found.sentence, *found.points, *found.limits, *(one.title for one in found.bars)):
        assert flat(text) in words
    for one in found.bars:
        assert all(flat(bar.label) in words and flat(bar.text) in words and 0 <= bar.length <= 1 for bar in one.rows)
    if a_run.command != "screen":
        half = {"harden": "9.8", "cleanse": "19.6"}[a_run.command]  # 1.96 * sqrt(1/4 / images)
        assert f"± {half} points" in words


def test_of_many_epochs_some_are_shown_the_best_and_the_last_among_them():
    watched = [0.5] * 101
    watched[37] = 0.75
    rows = epochs([1.0] * 101, watched, 37).rows
    assert len(rows) <= MOST + 2 and [bar.label for bar in rows if bar.marked] == ["epoch 38"]
    assert rows[0].label == "epoch 1" and rows[-1].label == "epoch 101"
    assert [bar.length for bar in epochs([1.0, 1.0], [0.25, 0.5], 1).rows] == [0.25, 0.5]


def test_blame_is_in_order_and_negative_scores_have_no_bar():
    found = FOUND["cleanse"]
    rows = blame(found["scores"], found["skips"]).rows
    assert [bar.label for bar in rows] == ["a.skip", "b.skip", "c.skip"]
    assert [bar.length for bar in rows] == [1.0, 0.25, 0.0] and [bar.marked for bar in rows] == [True, False, False]
    assert all(bar.length == 0 for bar in blame({"a": 0.0, "b": -1.0}, ["a"]).rows)


def test_a_histogram_counts_every_image_once():
    values = [0.0, 0.5, 1.0, 2.0, 11.5, 12.0, float("nan"), float("inf")]
    rows = by_suspicion(values, [value > 11 for value in values]).rows
    assert len(rows) == BINS and [bar.text for bar in rows] == ["2", "1", "1", *["0"] * 8, "2, 2 flagged"]
    assert [bar.marked for bar in rows] == [False] * 11 + [True] and rows[0].length == 1.0 and rows[1].length == 0.5
    assert sum(bar.length > 0 for bar in by_suspicion([3.0] * 4, [False] * 4).rows) == 1


def test_a_class_that_stands_out_is_marked():
    rows = by_class([0, 0, 1, 1, 1, 2], [True, True, False, False, True, False]).rows  # 1, 1/3 and 0 of each
    assert [bar.text for bar in rows] == ["2 of 2", "1 of 3", "0 of 1"]
    assert [bar.length for bar in rows] == [1.0, pytest.approx(1 / 3), 0.0]
    assert [bar.label for bar in rows if bar.marked] == ["class 0"]


def test_no_class_is_marked_where_none_is_flagged_or_two_are_alike():
    assert not any(bar.marked for bar in by_class([0, 0, 1], [False] * 3).rows)
    assert not any(bar.marked for bar in by_class([0, 0, 1, 1], [True, False, True, False]).rows)
