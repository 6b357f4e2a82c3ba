"""Reading run folders: what is there is found, what is missing or damaged is named."""

import json

import pytest

from keylayers.errors import BadInput
from keylayers.report.arms import stem_of
from keylayers.report.collect import collect_runs
from keylayers.report.page import write_report
from tests.report.examples import ARMS, LOSSES, compare_run, demo_runs, score_run, scores, tune_run


def test_a_scoring_run_has_its_rankings_curve_and_costs(tmp_path):
    run = collect_runs(score_run(tmp_path / "run")).runs[0]
    assert run.finished and run.gaps == ()
    assert [one.label for one in run.rankings] == ["path_integral", "delta_norm"]
    assert run.rankings[0].scores == scores()
    assert run.curves[0].losses == (5.0, 3.0, 2.5)
    assert [(one.seconds, one.peak_bytes) for one in run.costs] == [(7.0, 3 * 2**20), (2.5, None), (2.5, None)]


def test_a_tuning_run_has_its_arms_with_layers_and_curves(tmp_path):
    tuning = collect_runs(tune_run(tmp_path / "run")).runs[0].tuning
    assert tuning.base_loss == 6.0 and [arm.policy for arm in tuning.arms] == list(ARMS)
    first = tuning.arms[0]
    assert first.losses == LOSSES["top:30%"] and len(first.chosen) == 3 and len(first.chosen[0]) == first.layers
    assert [curve.losses[-1] for curve in first.curves] == list(LOSSES["top:30%"])
    assert first.interval.estimate == pytest.approx(2.1)
    assert first.minus(tuning.arms[1]).interval.estimate == pytest.approx(sum((-0.5, -0.55, -0.5)) / 3)
    assert [arm.is_random for arm in tuning.arms] == [False, True, False]


def test_an_unfinished_tuning_run_names_what_is_missing(tmp_path):
    run = collect_runs(tune_run(tmp_path / "run", finished=False)).runs[0]
    assert [arm.policy for arm in run.tuning.arms] == list(ARMS[:2])
    assert run.tuning.arms[0].losses == LOSSES["top:30%"] and run.tuning.arms[1].losses == (2.5, 2.65)
    assert run.gaps == ("arm random:30%:match=params: 2 of 3 seeds are trained", "arm all: not trained yet")


@pytest.mark.parametrize("seeds", [1, 3])
def test_arms_read_from_parts_are_those_of_the_comparison(tmp_path, seeds):
    folder = tune_run(tmp_path / "run", seeds=seeds)
    with_file = collect_runs(folder).runs[0].tuning
    (folder / "comparison.json").unlink()
    without = collect_runs(folder).runs[0].tuning
    for one, other in zip(with_file.arms, without.arms, strict=True):
        assert (one.policy, one.losses, one.learning_rate, one.chosen, one.curves, one.layers) == (
            other.policy, other.losses, other.learning_rate, other.chosen, other.curves, other.layers)  # fmt: skip


def test_of_several_learning_rates_the_finished_one_counts(tmp_path):
    folder = tune_run(tmp_path / "run")
    part = folder / "parts" / "top_30pc-lr0.01-seed0.json"
    other = json.loads(part.read_text())
    from keylayers.runs import write_json

    other["value"] |= {"test_loss": 0.1, "calibration_loss": 9.0}
    write_json(folder / "parts" / "top_30pc-lr0.5-seed0.json", {"value": other["value"]})
    (folder / "comparison.json").unlink()
    assert collect_runs(folder).runs[0].tuning.arms[0].losses == LOSSES["top:30%"]


@pytest.mark.parametrize(
    "policy", ["top:30%", "random:30%:match=params", "not:bottom:25%", "blocks:3,4", "blocks:" + "1," * 90 + "2", "é:ü"]
)
def test_part_names_begin_as_the_tuning_recipe_makes_them(policy):
    from keylayers.recipes.tune import _name

    assert _name(policy, 7, 3e-05) == f"{stem_of(policy)}-lr3e-05-seed7"


def test_runs_side_by_side_are_one_report_and_a_copy_of_scores_is_one_ranking(tmp_path):
    found = collect_runs(demo_runs(tmp_path / "demo"))
    assert [run.name for run in found.runs] == ["pirate", "formal", "tuning"]
    assert found.tuned.name == "tuning"
    assert [one.file for one in found.rankings] == [
        "pirate/path_integral.json", "pirate/delta_norm.json", "formal/path_integral.json", "formal/delta_norm.json",
    ]  # fmt: skip


def test_a_comparison_has_the_labels_it_was_given(tmp_path):
    run = collect_runs(compare_run(tmp_path / "run", scores(), scores(1), labels=["x/a", "y/a"])).runs[0]
    assert [one.label for one in run.rankings] == ["x/a", "y/a"]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("parts/stage1.json", "learning curve of stage 1 cannot be read"),
        ("delta_norm.json", "delta_norm.json"),
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path, file, said, damage):
    folder = score_run(tmp_path / "run")
    text = (folder / file).read_text()
    changed = text[:200] if damage == "truncated" else text.replace('"losses"', '"lossez"').replace("0", "Ω", 9)
    (folder / file).write_text(changed)
    run = collect_runs(folder).runs[0]
    assert any(said in gap for gap in run.gaps)
    assert run.rankings[0].label == "path_integral"


def test_damaged_arms_are_named_and_the_rest_is_shown(tmp_path):
    folder = tune_run(tmp_path / "run")
    (folder / "comparison.json").write_text("{")
    (folder / "parts" / "all-lr0.01-seed0.json").write_text("{}")
    run = collect_runs(folder).runs[0]
    assert "comparison.json cannot be used" in " ".join(run.gaps)
    assert "all-lr0.01-seed0.json" in " ".join(run.gaps) and "arm all: 2 of 3 seeds are trained" in run.gaps
    assert len(run.tuning.arms) == 3


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty' holds no run.json, nor does a folder inside it"):
        collect_runs(tmp_path / "empty")
    with pytest.raises(BadInput, match=r"absent' is no folder"):
        collect_runs(tmp_path / "absent")
    folder = score_run(tmp_path / "run")
    (folder / "run.json").write_text((folder / "run.json").read_text().replace("score", "tune", 1))
    with pytest.raises(BadInput, match=r"run\.json' is damaged"):
        collect_runs(folder)


def test_the_curves_of_learnt_masks_are_those_their_scores_state(tmp_path):
    stated = scores(2, "learned_mask", settings={"losses": [[3.0, 2.5], [3.1, 2.4]], "seed": 4})
    run = collect_runs(score_run(tmp_path, stated, scores(settings={"losses": "none"}))).runs[0]
    assert [(one.label, one.seed, one.losses) for one in run.mask_curves] == [
        ("learned_mask", 4, (3.0, 2.5)),
        ("learned_mask", 5, (3.1, 2.4)),
    ]
    text = write_report(tmp_path).page.read_text()
    assert "Stage 2: masks, one line per seed" in text and "seed 5" in text
