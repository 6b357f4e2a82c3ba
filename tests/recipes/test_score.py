"""Scoring: a file per criterion, computed once; deltas of our own or of any tuned model; refusals before work."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from keylayers.criteria import get
from keylayers.criteria.protocol import Evidence
from keylayers.errors import BadInput, KeylayersError, UnknownName
from keylayers.inputs.text import Inputs
from keylayers.layers import named_layers
from keylayers.layers.tensors import tensors_in_memory
from keylayers.recipes import evidence as module
from keylayers.recipes.score import score_layers
from keylayers.recipes.score_request import ScoreRequest, settings_of
from keylayers.runs import open_run
from keylayers.scores.files import load
from tests.small_world import request
from tests.tiny_models import build

ALL = ("learned_mask", "path_integral", "leave_one_out", "add_one_in", "delta_norm", "random")


def scored(asked: ScoreRequest, folder: Path):
    with open_run(folder, "score", asked) as run:
        return score_layers(asked, run)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A run with every criterion: (folder, scores)."""
    folder = tmp_path_factory.mktemp("runs") / "all"
    return folder, scored(request(world, *ALL), folder)


def test_every_criterion_leaves_a_file_with_where_it_came_from(world, finished):
    folder, scores = finished
    assert tuple(scores) == ALL
    for name, result in scores.items():
        assert load(folder / f"{name}.json") == result
        assert result.criterion == name and len(result.layers) == 3 * 7 + 1
        origin = result.provenance
        assert origin.model["id"] == str(world.model) and origin.model["architecture"] == "LlamaForCausalLM"
        assert [entry["split"] for entry in origin.data] == ["train", "calibration"]
        assert origin.versions["torch"] == torch.__version__.split("+")[0] or origin.versions["torch"]
    assert scores["learned_mask"].provenance.settings["steps"] == 4
    assert scores["path_integral"].provenance.settings["points"] == 2
    assert (
        scores["path_integral"].provenance.settings["loss_tuned"]
        < scores["path_integral"].provenance.settings["loss_base"]
    )


def test_stage_one_keeps_its_adapter_and_no_states(finished):
    folder, _ = finished
    assert (folder / "stage1" / "adapter" / "adapter_model.safetensors").is_file()
    assert not list((folder / "stage1").glob("checkpoint-*"))
    assert len(json.loads((folder / "parts" / "stage1.json").read_text())["value"]["losses"]) == 4


def test_a_second_call_computes_nothing(world, finished, monkeypatch):
    folder, scores = finished
    monkeypatch.setattr(Inputs, "load_model", lambda self, **options: pytest.fail("loaded a model"))
    monkeypatch.setattr(module, "learn_deltas", lambda *a, **o: pytest.fail("trained"))
    assert scored(request(world, *ALL), folder) == scores


@pytest.mark.parametrize("name", ["path_integral", "delta_norm", "random"])
def test_a_missing_file_alone_is_computed_again_from_the_kept_deltas(world, finished, monkeypatch, name):
    folder, scores = finished
    monkeypatch.setattr(module, "learn_deltas", lambda *a, **o: pytest.fail("trained"))
    (folder / f"{name}.json").unlink()
    again = scored(request(world, *ALL), folder)[name]
    seconds = scores[name].provenance.seconds
    assert replace(again, provenance=replace(again.provenance, seconds=seconds)) == scores[name]


def test_a_run_an_adapter_and_a_merged_checkpoint_as_tuned_give_the_same_scores(world, finished, tmp_path):
    from peft import PeftModel

    folder, scores = finished
    expected = scores["leave_one_out"].values
    merged = PeftModel.from_pretrained(world.inputs().load_model().model, str(folder / "stage1" / "adapter"))
    merged.merge_and_unload().save_pretrained(tmp_path / "merged")
    for number, tuned in enumerate((folder, folder / "stage1" / "adapter", tmp_path / "merged")):
        found = scored(request(world, "leave_one_out", tuned=str(tuned)), tmp_path / str(number))["leave_one_out"]
        assert found.values == pytest.approx(expected, abs=2e-5)
        assert not (tmp_path / str(number) / "stage1").exists()


def test_blocks_are_scored_from_the_same_stage_one(world, finished, tmp_path):
    _, scores = finished
    asked = request(world, "add_one_in", granularity="block", settings={})
    found = scored(asked, tmp_path / "blocks")["add_one_in"]
    assert [layer.name for layer in found.layers] == [f"model.layers.{index}" for index in range(3)]
    assert found.values.sum() == pytest.approx(scores["add_one_in"].values.sum(), abs=0.05)


def test_what_stage_one_cannot_change_is_refused_before_it_trains():
    model = build("olmoe")
    with pytest.raises(BadInput, match=r"no layer of granularity 'router'.*`tuned`"):
        module._require_overlap(named_layers(model), named_layers(model, "router"), "router")
    module._require_overlap(named_layers(model), named_layers(model, "expert"), "expert")


def test_a_criterion_that_looks_at_no_data_needs_none(world, finished, tmp_path):
    folder, scores = finished
    nowhere = world.inputs(data=str(tmp_path / "nowhere.jsonl"))
    asked = request(world, "delta_norm", "random", inputs=nowhere, tuned=str(folder))
    found = scored(asked, tmp_path / "run")
    assert found["delta_norm"].values == pytest.approx(scores["delta_norm"].values, rel=1e-6)
    assert found["delta_norm"].provenance.data == ()


WEIGHT_ONLY = ("signal_noise", "condition_number", "spectral_exponent")


def test_weight_only_criteria_build_no_model_and_read_no_data(world, tmp_path, monkeypatch):
    """... and agree with what they say of the loaded model."""
    model = build("mixtral").bfloat16()
    model.save_pretrained(tmp_path / "model")
    nothing = Inputs(model=str(tmp_path / "model"), data=str(tmp_path / "nowhere.jsonl"))
    for name in ("load_model", "load_splits"):
        monkeypatch.setattr(Inputs, name, lambda self, **options: pytest.fail("not needed"))
    found = scored(ScoreRequest(nothing, (*WEIGHT_ONLY, "depth_only", "type_only", "random")), tmp_path / "run")
    layers = named_layers(model)
    for name, scores in found.items():
        direct = get(name)(Evidence(weights=tensors_in_memory(model)), layers)
        assert scores.layers == layers and scores.values.tolist() == direct.values.tolist(), name
        assert scores.provenance.data == () and scores.provenance.model["architecture"] == "MixtralForCausalLM"


def test_weights_that_do_not_stream_are_loaded(world, tmp_path, monkeypatch, capsys):
    expected = scored(request(world, "condition_number"), tmp_path / "one")["condition_number"]
    monkeypatch.setattr("keylayers.inputs.weights_only.stored_weights", lambda *a, **o: None)
    found = scored(request(world, "condition_number"), tmp_path / "two")["condition_number"]
    assert found.values.tolist() == expected.values.tolist()
    assert "cannot be read without building the model" in capsys.readouterr().err


def test_weight_only_and_delta_criteria_go_together(world, finished, tmp_path):
    folder, _ = finished
    found = scored(request(world, "delta_norm", "signal_noise", tuned=str(folder)), tmp_path / "run")
    alone = scored(request(world, "signal_noise"), tmp_path / "alone")
    assert found["signal_noise"].values.tolist() == alone["signal_noise"].values.tolist()
    assert found["delta_norm"].values.min() > 0


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"criteria": ("learned_masks",)}, UnknownName, "'learned_masks'; did you mean 'learned_mask'"),
        ({"settings": {"pionts": 3}}, UnknownName, "'pionts'; did you mean 'points'"),
        ({"settings": {"points": "many"}}, BadInput, "points=many` of path_integral: expected a whole number"),
        ({"inputs": {"data": "nowhere.jsonl"}}, BadInput, "no such data file: nowhere.jsonl"),
        ({"inputs": {"columns": {"prompt": "promt"}}}, UnknownName, "promt"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_model_is_loaded(world, tmp_path, monkeypatch, asked, error, said):
    monkeypatch.setattr(Inputs, "load_model", lambda self, **options: pytest.fail("loaded a model"))
    given = {"criteria": ("path_integral",), **asked, "inputs": world.inputs(**asked.get("inputs", {}))}
    with pytest.raises(error, match=said):
        scored(ScoreRequest(**given), tmp_path / "run")


def test_a_tuned_model_that_does_not_exist_or_is_of_another_shape_is_refused(world, tmp_path):
    asked = request(world, "delta_norm", tuned=str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="no folder"):
        scored(asked, tmp_path / "one")
    build("llama").save_pretrained(tmp_path / "other")
    asked = request(world, "delta_norm", tuned=str(tmp_path / "other"))
    with pytest.raises(BadInput, match="not two versions of one model"):
        scored(asked, tmp_path / "two")


def test_settings_are_of_the_right_type_also_from_text():
    from keylayers import criteria

    assert settings_of(criteria.get("learned_mask"), {"steps": "7", "initial": "-1e-1"}).steps == 7
    assert settings_of(criteria.get("learned_mask"), {"initial": "-1e-1"}).initial == -0.1
    with pytest.raises(UnknownName, match="unknown learned_mask optimiser 'adamm'; did you mean 'adam'"):
        settings_of(criteria.get("learned_mask"), {"optimiser": "adamm"})


def test_a_pickle_allowed_as_the_model_scores(world, tmp_path):

    folder = tmp_path / "pickled"
    shutil.copytree(world.model, folder)
    model = world.inputs().load_model().model
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    inputs = world.inputs(model=str(folder), allow_pickle=True)
    with pytest.raises(BadInput, match="is a pickle"):
        scored(request(world, "signal_noise", inputs=world.inputs(model=str(folder))), tmp_path / "refused")
    found = scored(request(world, "signal_noise", inputs=inputs), tmp_path / "run")["signal_noise"]
    assert len(found.layers) == 22
    plain = scored(request(world, "signal_noise"), tmp_path / "plain")["signal_noise"]
    assert found.values.tolist() == plain.values.tolist()


@pytest.mark.long
def test_a_run_killed_in_either_stage_resumes_to_the_same_scores(tmp_path):
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["kills"] >= 5
    assert found["resumed"] == [found["whole"]] * len(found["resumed"])


def test_criteria_of_blocks_choose_blocks_and_mixed_ones_are_told_apart(world, tmp_path):
    asked = ScoreRequest(inputs=world.inputs(), criteria=("block_influence", "angular_distance"))
    with open_run(tmp_path / "blocks", "score", {}) as run:
        found = score_layers(asked, run)
    assert {one.granularity for one in found.values()} == {"block"}
    for criteria, granularity, said in (
        (("block_influence", "delta_norm"), None, "block_influence scores block layers, but delta_norm would score"),
        (("block_influence",), "linear", "block_influence scores block layers, not linear"),
        (("delta_norm",), "blok", "unknown granularity 'blok'; did you mean 'block'"),
    ):
        with open_run(tmp_path / f"{granularity}", "score", {}) as run, pytest.raises(KeylayersError, match=said):
            score_layers(replace(asked, criteria=criteria, granularity=granularity), run)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"criteria": ("substitution",), "settings": {"window": 9}, "granularity": "block"}, "covers all 3 layers"),
        ({"criteria": ("learned_mask", "type_only"), "settings": {"first": "nose"}}, "no layer has the role nose"),
        ({"criteria": ("path_integral", "gradient_norm"), "score_records": 1}, "tells noise by batches that differ"),
        ({"criteria": ("learned_mask",), "inputs": {"max_length": 3}}, "no supervised token"),
    ],
)
def test_what_does_not_go_with_the_model_is_refused_before_it_is_loaded(world, tmp_path, monkeypatch, asked, said):
    monkeypatch.setattr(Inputs, "load_model", lambda self, **options: pytest.fail("loaded a model"))
    given = {**asked, "inputs": world.inputs(**asked.get("inputs", {}))}
    with pytest.raises(BadInput, match=said):
        scored(ScoreRequest(**given), tmp_path / "run")


def test_what_trains_nothing_looks_at_all_records_and_says_on_how_many_it_rests(world, tmp_path, capsys):
    asked = request(world, "gradient_norm")
    few = scored(replace(asked, score_records=60, settings={"estimate": "batches"}), tmp_path / "few")["gradient_norm"]
    (entry,) = few.provenance.data
    assert (entry["records"], entry["batches"], few.repeats.shape[0]) == (60, 15, 8)
    assert entry["tokens"] > 60 and "scoring on 60 records" in capsys.readouterr().err
    every = scored(replace(asked, score_records=999), tmp_path / "every")["gradient_norm"].provenance.data[0]
    assert every["records"] == 80 and every["split"] == "calibration, train, test"
    assert "judge what these scores select on other data" in capsys.readouterr().err


def test_a_tuned_model_of_elsewhere_is_scored_on_calibration_records_unless_more_are_asked_for(
    world, finished, tmp_path, capsys
):
    adapter = tmp_path / "elsewhere"
    shutil.copytree(finished[0] / "stage1" / "adapter", adapter)
    asked = request(world, "add_one_in", tuned=str(adapter))
    found = scored(asked, tmp_path / "few")["add_one_in"].provenance.data
    assert [entry["split"] for entry in found] == ["train", "calibration"] and found[1]["records"] < 20
    assert "may have been trained on" in capsys.readouterr().err
    more = scored(replace(asked, score_records=60), tmp_path / "more")["add_one_in"].provenance.data
    assert "train" in more[0]["split"] and more[0]["records"] > 40, more


def test_records_that_a_run_of_ours_trained_on_are_not_scored_on(world, finished, tmp_path):
    folder, _ = finished
    asked = replace(request(world, "add_one_in"), score_records=999, tuned=str(folder))
    for tuned in (folder, folder / "stage1" / "adapter"):
        found = scored(replace(asked, tuned=str(tuned)), tmp_path / tuned.name)["add_one_in"].provenance.data
        assert [entry["split"] for entry in found] == ["train", "calibration"] and found[1]["records"] < 20
