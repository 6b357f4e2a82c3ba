"""`keylayers doctor` as a user runs it."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from keylayers.runs import read_json

QUICK = ("--seq", 16, "--batch", 2, "--sample", 3, "--records", 8)


@pytest.fixture
def broken(world, tmp_path):
    """The world's checkpoint with one NaN in it."""
    folder = tmp_path / "broken"
    shutil.copytree(world.model, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][2, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_sound_model_passes_and_all_is_stored(cli, world):
    result = cli("doctor", world.model, *QUICK, "--data", world.data, "--out", "found.json")
    assert result.code == 0, result
    assert "\nfail" not in result.out and "16 gates hold, 0 fail, 0 skipped" in result.out
    assert "calibration records of" in result.out and "3 of 22 layers, evenly spaced" in result.out
    with open("found.json") as file:
        stored = json.load(file)
    assert read_json("found.json")["format"] == "keylayers/doctor/1" == stored["format"]
    assert {gate["status"] for gate in stored["gates"]} == {"pass"}
    for one in stored["tuning"]:
        assert one["extra"] == one["gradients"] + one["moments"] + one["activations"]
    assert {(one["policy"], one["method"]) for one in stored["tuning"]} == {
        (policy, method) for policy in ("random:30%:seed=0", "last:30%", "all") for method in ("lora", "full")
    }
    shown = {line.split()[1] for line in result.out.splitlines() if line.startswith("yes    score")}
    assert shown == {"score"} and "learned_mask" in result.out


def test_a_broken_model_fails_with_the_weights_name(cli, broken):
    result = cli("doctor", broken, *QUICK)
    assert result.code == 1
    text = " ".join(result.out.split())
    assert "model.layers.1.mlp.up_proj.weight (1 of 384)" in text and "-> load an intact checkpoint" in text
    assert "1 fail" in text and text.endswith("; failed: finite weights")
    assert "no score learned_mask the gate 'finite weights' failed" in text


@pytest.mark.long
def test_a_factory_is_examined_with_images(cli):
    result = cli("doctor", "keylayers.models.cifar:resnet20", *QUICK)
    assert result.code == 0, result
    assert "inputs: random images" in result.out and "2 blocks change the shape" in " ".join(result.out.split())


def test_scores_say_what_would_train(cli, world):
    assert cli("score", "random", "--model", world.model, "--out", "scores.json").code == 0
    result = cli("doctor", world.model, *QUICK, "--scores", "scores.json", "--select", "top:3", "--out", "found.json")
    assert result.code == 0, result
    policies = {one["policy"] for one in read_json("found.json")["tuning"]}
    assert policies == {"top:3", "last:30%", "all"}
    other = cli("doctor", "keylayers.models.cifar:resnet20", *QUICK, "--scores", "scores.json")
    assert other.code == 2 and "the scores are of" in other.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("bundled:lama",), "did you mean 'llama'"),
        (("nowhere/at/all",), "no folder"),
        (("bundled:llama", "--out", "found.txt"), "expected the name of a .json file"),
        (("bundled:llama", "--seq", 2), "--seq 2: expected a whole number of at least 4"),
        (("bundled:llama", "--batch", 0), "--batch 0: expected a whole number of at least 1"),
        (("bundled:llama", "--select", "tpo:3"), "unknown policy 'tpo'"),
        (("bundled:llama", "--select", "top:3"), "needs none: first, last"),
        (("bundled:llama", "--scores", "none.json"), "none.json"),
        (("bundled:llama", "--dtype", "float99"), "unknown value of --dtype 'float99'"),
    ],
)
def test_mistakes_end_with_one_text(cli, words, told):
    result = cli("doctor", *words)
    assert result.code == 2 and told in result.err and "Traceback" not in result.err


def test_an_unwritable_place_is_said(cli, world):
    with open("file", "w"):
        pass
    result = cli("doctor", world.model, *QUICK, "--out", "file/found.json")
    assert result.code == 2 and "--out file/found.json" in result.err and result.out == ""  # before any work
