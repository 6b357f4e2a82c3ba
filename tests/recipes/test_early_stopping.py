"""Stage 1 that stops early: where an uninterrupted run stops, with the deltas of a training cut there; what is kept."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from keylayers.errors import BadInput
from keylayers.inputs.text import Inputs
from keylayers.recipes import early_stopping as module
from keylayers.recipes.early_stopping import StopEarly, settling_of
from keylayers.recipes.early_stopping_text import in_words
from keylayers.recipes.score import score_layers
from keylayers.runs import open_run, read_json
from keylayers.scores.files import load
from keylayers.scores.rank_convergence import Rule, has_settled
from keylayers.training.trainer import TrainSettings
from tests.small_world import request

TRAINING = TrainSettings(steps=20, batch_size=4, learning_rate=1e-2, save_every=3)
NEAR = Rule(target=0.3, draws=100)  # 16 calibration records leave much noise
NEVER = Rule(target=0.3, draws=100, in_a_row=9)


def asking(world, rule, *criteria, **changes):
    given = {"stage_one": TRAINING, "stop_early": StopEarly(rule), "inputs": world.inputs(held_out=16), **changes}
    return request(world, *(criteria or ("path_integral",)), **given)


def scored(asked, folder):
    with open_run(folder, "score", asdict(asked)) as run:
        return score_layers(asked, run)


def adapter(folder):
    return (folder / "stage1" / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    """A run that stopped early: (folder, scores)."""
    folder = tmp_path_factory.mktemp("settling") / "run"
    return folder, scored(asking(world, NEAR), folder)["path_integral"]


def test_it_stops_early_with_the_scores_of_a_training_cut_there(world, stopped, tmp_path):
    folder, scores = stopped
    found = settling_of(folder)
    assert found["settled"] and 3 <= found["stopped_after"] < 20
    cut = replace(TRAINING, stop_after=found["stopped_after"])
    alone = scored(asking(world, NEAR, stage_one=cut, stop_early=None), tmp_path / "alone")["path_integral"]
    assert scores.by_name() == alone.by_name() and adapter(folder) == adapter(tmp_path / "alone")
    assert not list((folder / "stage1").glob("checkpoint-*"))
    assert len(read_json(folder / "parts" / "stage1.json")["value"]["losses"]) == found["stopped_after"]


def test_the_run_keeps_each_look_and_the_decision_follows_from_them(stopped):
    folder, _ = stopped
    found = settling_of(folder)
    steps = [one["step"] for one in found["curve"]]
    assert steps == [step for step in (1, 2, 3, 5, 10, 15, 20) if step <= found["stopped_after"]]
    looks = [load(folder / "looks" / f"step-{step}.json") for step in steps]
    moves = [module.moved(a, b, NEAR) for a, b in pairwise(looks)]
    assert [one["move"] for one in found["curve"]] == [None, *map(asdict, moves)]
    assert [has_settled(moves[:count], NEAR) for count in range(len(moves) + 1)] == [False] * len(moves) + [True]
    assert found["train_seconds"] > 0 and found["look_seconds"] > 0 and found["schedule_cut"]
    expected = found["train_seconds"] * (20 - found["stopped_after"]) / found["stopped_after"]
    assert found["saved_seconds"] == pytest.approx(expected, abs=2e-3)


def test_the_scores_say_where_stage_one_stopped(stopped):
    folder, scores = stopped
    noted = scores.provenance.settings["stage_one"]
    assert noted["stopped_after"] == settling_of(folder)["stopped_after"] and noted["steps"] == 20
    assert noted["settled"] and noted["target"] == 0.3
    assert list(noted["agreement"]) == [str(one["step"]) for one in settling_of(folder)["curve"][1:]]
    assert load(folder / "path_integral.json") == scores


@pytest.mark.long
def test_a_ranking_that_does_not_settle_trains_to_the_end_as_if_nobody_looked(world, tmp_path):
    folder, short = tmp_path / "run", replace(TRAINING, steps=10)
    scores = scored(asking(world, NEVER, stage_one=short), folder)["path_integral"]
    found = settling_of(folder)
    assert not found["settled"] and found["stopped_after"] == 10 and not found["schedule_cut"]
    assert [one["step"] for one in found["curve"]] == [1, 2, 5, 8, 10]  # of 10 steps, 15, 25 and 75 % are 2, 2 and 8
    whole = scored(asking(world, NEVER, stage_one=short, stop_early=None), tmp_path / "whole")["path_integral"]
    assert scores.by_name() == whole.by_name() and adapter(folder) == adapter(tmp_path / "whole")
    said = in_words(found)
    assert "ran all 10 steps: by then the ranking had not settled" in said
    assert "saved" not in said and "schedule" not in said


def test_what_is_said_of_a_stop(stopped):
    folder, _ = stopped
    said, stop = in_words(settling_of(folder)), settling_of(folder)["stopped_after"]
    assert f"stage 1 stopped after {stop} of 20 steps: the ranking had settled" in said
    assert "looking took" in said and "saved about" in said and "the cosine schedule" in said


def test_where_batches_allow_no_more_or_nothing_it_is_said(stopped):
    found = json.loads(json.dumps(settling_of(stopped[0])))
    assert "mostly noise" not in in_words({**found, "settled": False, "stopped_after": 20})
    found["curve"][-1]["move"]["kuncheva"] |= {"low": 0.6, "ceiling": 0.6, "target": 0.9}
    assert "needed 0.60, all that it reaches with itself" in in_words(found)
    found["curve"][-1]["move"]["kuncheva"] |= {"low": 0.1, "ceiling": 0.2}
    said = in_words({**found, "settled": False, "stopped_after": 20})
    assert "the bound of the ranking with itself is 0.20, so it is mostly noise" in said
    assert "settled only with the last look" in in_words({**found, "settled": True, "stopped_after": 20})


PLACES = [(module, "score_path_integral", 2), (module, "moved", 2)]


@pytest.mark.parametrize(("place", "name", "number"), PLACES, ids=[name for _, name, _ in PLACES])
def test_an_interrupted_run_resumes_to_the_same_stop(world, stopped, tmp_path, monkeypatch, place, name, number):
    call, left = getattr(place, name), [number]

    def failing(*given, **options):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return call(*given, **options)

    monkeypatch.setattr(place, name, failing)
    with pytest.raises(KeyboardInterrupt):
        scored(asking(world, NEAR), tmp_path / "run")
    again = scored(asking(world, NEAR), tmp_path / "run")["path_integral"]
    folder, scores = stopped
    assert again.by_name() == scores.by_name() and adapter(tmp_path / "run") == adapter(folder)
    ours, theirs = settling_of(tmp_path / "run"), settling_of(folder)
    assert all(ours[key] == theirs[key] for key in ("stopped_after", "settled", "curve", "rule"))


@pytest.mark.long
def test_a_killed_run_resumes_to_the_same_stop(tmp_path):
    script = Path(__file__).with_name("killed_settling.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["kills"] >= 5 and found["whole"]["stopped_after"] < found["whole"]["steps"]
    assert found["resumed"] == [found["whole"]] * len(found["resumed"])


def test_a_finished_run_neither_looks_nor_trains_again(world, stopped, monkeypatch):
    folder, scores = stopped
    for name in ("score_path_integral", "learn_until"):
        monkeypatch.setattr(module, name, lambda *a, **o: pytest.fail("looked or trained"))
    assert scored(asking(world, NEAR), folder)["path_integral"] == scores
    (folder / "path_integral.json").unlink()
    again = scored(asking(world, NEAR), folder)["path_integral"]
    assert np.array_equal(again.values, scores.values)
    assert again.provenance.settings["stage_one"] == scores.provenance.settings["stage_one"]


def test_a_criterion_without_deltas_says_nothing_of_stage_one(world, tmp_path):
    found = scored(asking(world, NEVER, "delta_norm", "random", stage_one=replace(TRAINING, steps=2)), tmp_path / "run")
    assert "stage_one" in found["delta_norm"].provenance.settings
    assert "stage_one" not in found["random"].provenance.settings


def test_blocks_are_watched_where_blocks_are_scored(world, tmp_path):
    asked = asking(world, NEAR, "delta_norm", granularity="block", stage_one=replace(TRAINING, steps=2))
    scored(asked, tmp_path / "run")
    assert load(tmp_path / "run" / "looks" / "step-2.json").layers[0].name == "model.layers.0"


@pytest.mark.parametrize(
    ("criteria", "changes", "said"),
    [
        (("random",), {}, "random needs no stage 1"),
        (("path_integral",), {"tuned": "somewhere"}, "`tuned=somewhere` takes its place"),
    ],
)
def test_what_has_no_stage_one_to_stop_is_refused_before_anything_is_loaded(
    world, tmp_path, monkeypatch, criteria, changes, said
):
    monkeypatch.setattr(Inputs, "load_model", lambda self, **options: pytest.fail("loaded a model"))
    with pytest.raises(BadInput, match=said):
        scored(asking(world, NEAR, *criteria, **changes), tmp_path / "run")


def test_one_batch_of_calibration_records_is_refused_before_training(world, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "learn_until", lambda *a, **o: pytest.fail("trained"))
    with pytest.raises(BadInput, match="at least two batches"):
        scored(asking(world, NEAR, inputs=world.inputs(held_out=1)), tmp_path / "run")


def test_looks_are_made_after_rising_shares_of_the_steps_and_after_the_last():
    asked = StopEarly()
    assert asked.steps(replace(TRAINING, steps=200)) == (10, 20, 30, 50, 100, 150, 200)
    assert asked.steps(replace(TRAINING, steps=3)) == (1, 2, 3)
    assert asked.steps(replace(TRAINING, steps=200, stop_after=60)) == (10, 20, 30, 50, 60)
    assert StopEarly(milestones=(0.5,)).steps(replace(TRAINING, steps=10)) == (5, 10)
    for milestones in ((), (0.5, 0.5), (0.0, 1.0), (0.5, 1.5), (1.0, 0.5)):
        with pytest.raises(BadInput, match="milestones"):
            StopEarly(milestones=milestones)


def test_the_settings_of_a_run_hold_the_rule(stopped):
    folder, _ = stopped
    kept = json.loads((folder / "run.json").read_text())["settings"]["stop_early"]
    assert kept["rule"]["target"] == 0.3 and kept["milestones"][-1] == 1.0
