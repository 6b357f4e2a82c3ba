"""The sentences of a report: the figures in them, and that they claim no more than those show."""

from dataclasses import replace

import pytest

from keylayers.report.answers import answer, verdict
from keylayers.report.arms import Arm
from keylayers.report.choice import choose, trial
from keylayers.report.collect import collect_runs
from keylayers.report.comparisons import agreement_views
from keylayers.report.limits import state_limits
from keylayers.report.rankings import kind_rows, ranking_views, why
from keylayers.scores import agreement, agreements
from tests.report.examples import LAYERS, compare_run, demo_runs, score_run, scores, tune_run


def head(folder):
    """The answer of a run folder."""
    found = collect_runs(folder)
    views, refused = agreement_views(found)
    assert refused == ()
    pairs = tuple(pair for view in views for table in view.tables for pair in table.pairs)
    return answer(found, choose(found), pairs)


def arm(policy: str, *losses: float) -> Arm:
    return Arm(policy, losses, 0.01, 5, 0.3, 10, 1.0, 1)


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        ((1.0, 1.1, 1.2), (2.0, 2.1, 2.2), "worse by 1.0000\u00a0±\u00a00.0000"),
        ((2.0, 2.1, 2.2), (1.0, 1.1, 1.2), "better by 1.0000\u00a0±\u00a00.0000"),
        ((1.0, 2.0, 3.0), (3.0, 2.0, 1.1), "no difference shown (+0.0333\u00a0±\u00a04.8446)"),
        ((1.0,), (1.5,), "worse by 0.5000, without an interval (one seed)"),
        ((1.0, 1.1), (1.5,), "worse by 0.4500, without an interval (2 and 1 seeds are finished)"),
    ],
)
def test_a_difference_is_claimed_only_where_its_interval_shows_one(first, other, said):
    assert verdict(arm("a", *first), arm("b", *other)) == said


def test_tuning_is_answered_beside_random_layers_first(tmp_path):
    found = head(tune_run(tmp_path / "run"))
    assert found.sentence == (
        "Training only the 30\u00a0% most critical layers brings the held\u2011out loss from 6.000 to 2.100 nats per "
        "token; random layers with as many parameters reach only 2.617."
    )
    assert found.points[0].startswith("Random layers with as many parameters (random:30%:match=params): 2.6167")
    assert "worse by 0.5167" in found.points[0] and "no difference shown" in found.points[1]
    assert [tile.value for tile in found.tiles] == ["2.1000", "5", "30.0\u00a0%", "−0.5167"]


def test_an_undecided_control_is_said_in_the_first_sentence(tmp_path):
    found = head(tune_run(tmp_path / "run", arms=("top:30%", "all")))
    assert found.sentence.endswith("2.100 nats per token; no difference is shown to all layers, which reach 2.067.")


def test_one_seed_shows_no_difference_and_says_so(tmp_path):
    folder = tune_run(tmp_path / "run", seeds=1)
    found = head(folder)
    assert found.sentence.endswith("; random layers with as many parameters reach 2.500 (one seed, so no interval).")
    assert "without an interval (one seed)" in found.points[0]
    assert any("One training seed" in text for text in state_limits(collect_runs(folder), choose(collect_runs(folder))))


def test_missing_controls_are_said(tmp_path):
    found = collect_runs(tune_run(tmp_path / "run", arms=("top:30%", "last:30%")))
    assert any("No arm trained random layers" in text for text in state_limits(found, choose(found)))
    found = collect_runs(tune_run(tmp_path / "two"))
    said = state_limits(found, choose(found))
    assert any("random layers are 3 draws" in text for text in said)
    assert not any("No arm trained random" in text for text in said)


def test_scores_are_answered_by_the_share_of_parameters_and_of_the_drop(tmp_path):
    one = scores()
    found = head(score_run(tmp_path / "run", one))
    top = one.order()[:5]  # 30 % of 17
    size = sum(LAYERS[i].size for i in top) / sum(layer.size for layer in LAYERS)
    assert f"hold {size:.1%}".replace("%", "\u00a0%") in found.sentence
    assert f"bring {one.values[top].sum() / 20:.1%}".replace("%", "\u00a0%") in found.sentence
    assert "are certain" in found.points[0] and LAYERS[top[0]].name in found.points[1]


def test_scores_without_intervals_have_no_tiers_and_say_so(tmp_path):
    bare = scores(repeats=0)
    found = collect_runs(score_run(tmp_path / "run", bare))
    assert choose(found).tiers is None and ranking_views(found, choose(found))[0].tiers is None
    assert any("Scores without intervals" in text for text in state_limits(found, choose(found)))
    assert any("Scores alone do not show" in text for text in state_limits(found, choose(found)))


def test_a_scoring_run_says_how_to_try_its_choice_and_a_tuning_run_does_not(tmp_path):
    found = collect_runs(score_run(tmp_path / "a run"))
    line = trial(found, choose(found)).line
    assert line.startswith("keylayers tune --model some/model --data some/data.jsonl --scores '")
    assert "--against random:30%:match=params" in line and "a run/path_integral.json' --select top:30%" in line
    found = collect_runs(tune_run(tmp_path / "tune"))
    assert trial(found, choose(found)) is None


IMAGES = {"model": "my.net:make", "data": "my images.npz", "weights": "w.safetensors"}


@pytest.mark.parametrize(
    ("granularity", "wanted"),
    [
        ("conv", "keylayers harden --model my.net:make --weights w.safetensors --data 'my images.npz' --scores"),
        ("skip", "keylayers cleanse --model my.net:make --weights w.safetensors --clean 'my images.npz' --skip "),
    ],
)
def test_scores_of_images_are_tried_on_images(tmp_path, granularity, wanted):
    one = replace(scores(), granularity=granularity)
    found = collect_runs(score_run(tmp_path / "run", one, inputs=IMAGES))
    line = trial(found, choose(found)).line
    assert line.startswith(wanted) and "tune" not in line
    if granularity == "skip":
        assert line.endswith(one.ranking()[0].name)


@pytest.mark.parametrize("acted", ["top", "bottom"])
def test_two_rankings_are_answered_by_their_overlap_beside_chance(tmp_path, acted):
    one, two = scores(), scores(1, "delta_norm")
    found = head(compare_run(tmp_path / "run", one, two, acted=acted))
    truth = agreement(one, two, 0.3, acted=acted)
    acted_on = truth.of_acted
    assert f"share {acted_on.shared} of the {acted_on.size} layers in their {acted} sets" in found.sentence
    assert f"{acted_on.jaccard:.3f}, where chance gives {acted_on.expected:.3f}" in found.sentence
    assert found.tiles[0].beside == f"chance {acted_on.expected:.3f}"
    views = ranking_views(collect_runs(tmp_path / "run"), choose(collect_runs(tmp_path / "run")))
    marked = {cell.rank for cell in views[0].map.cells if cell.chosen}
    assert marked == (set(range(1, 6)) if acted == "top" else set(range(6, 18)))
    assert views[0].tiers.startswith("of the 5 most critical layers")


def test_each_pair_stands_beside_its_chance(tmp_path):
    several = [scores(i) for i in range(3)]
    folder = compare_run(tmp_path / "run", *several, labels=["a", "b", "c"])
    (view,), _ = agreement_views(collect_runs(folder))
    table = agreements(several, 0.3, labels=["a", "b", "c"])
    assert [row.pair for row in view.rows] == ["a / b", "a / c", "b / c"]
    for i, (row, pair) in enumerate(zip(view.rows, table.pairs, strict=True)):
        found = pair.of_acted
        assert row.jaccard == f"{found.jaccard:.3f}" and row.at == pytest.approx(100 * found.jaccard, abs=0.01)
        assert row.chance == f"{found.expected:.3f}" and row.chance_at == pytest.approx(100 * found.expected, abs=0.01)
        assert row.spread[0] < row.chance_at < row.spread[0] + row.spread[1] < 100
        assert row.shared == f"{found.shared} of 5" and row.p[1] == f"{table.p_values('kind')[i]:.2g}"


def test_many_rankings_are_answered_by_the_range_of_their_overlaps(tmp_path):
    found = head(compare_run(tmp_path / "run", *(scores(i) for i in range(3)), labels=["a", "b", "c"]))
    assert "overlap with Jaccard indices of" in found.sentence and "where chance gives" in found.sentence
    assert "of 3 pairs share more" in found.points[0]


def test_rankings_that_cannot_be_compared_are_named(tmp_path):
    folder = score_run(tmp_path / "run", scores(), scores(1, "delta_norm", layers=LAYERS[:-1]))
    views, refused = agreement_views(collect_runs(folder))
    assert views == () and "lm_head" in refused[0]


def test_the_demo_asks_both_questions(tmp_path):
    views, _ = agreement_views(collect_runs(demo_runs(tmp_path / "demo")))
    assert [view.title for view in views] == [
        "Do pirate and formal need the same layers, by delta_norm?",
        "Do pirate and formal need the same layers, by path_integral?",
        "Do the criteria agree?",
    ]
    assert [row.pair for row in views[2].rows] == [
        "pirate: path_integral / delta_norm", "formal: path_integral / delta_norm",
    ]  # fmt: skip


def test_what_was_chosen_and_why(tmp_path):
    found = collect_runs(tune_run(tmp_path / "run"))
    choice = choose(found)
    assert choice.trained and set(choice.names) == {layer.name for layer in scores().ranking()[:5]}
    rows = kind_rows(choice)
    assert sum(row.count for row in rows) == 5 and sum(row.total for row in rows) == len(LAYERS)
    inside, outside = scores().ranking()[4:6]
    assert f"last one inside is {inside.name}" in why(choice) and f"outside {outside.name}" in why(choice)


def test_an_unfinished_run_has_an_answer(tmp_path):
    assert "2.100" in head(tune_run(tmp_path / "run", finished=False)).sentence
