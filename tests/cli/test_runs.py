"""score, tune and revert from the command line: results where they belong, and every bad input one clear text."""

import json
import re
import shutil

import pytest
import torch

from keylayers.runs import read_run
from keylayers.scores.files import load
from tests.small_world import make


@pytest.fixture(scope="module")
def scores(world, tmp_path_factory):
    """A score file over the world's layers."""
    from keylayers.recipes.score import score_layers
    from keylayers.runs import open_run
    from tests.small_world import request

    asked = request(world, "random")
    folder = tmp_path_factory.mktemp("scores")
    with open_run(folder / "run", "score", asked) as run:
        score_layers(asked, run)
    return folder / "run" / "random.json"


def test_score_shows_the_best_layers_and_stores_all(cli, score_words):
    result = cli("score", "path_integral", *score_words, "--set", "points=2", "--out", "run")
    assert result.code == 0
    assert "the 10 most critical of 22 layers" in result.out and "stored in run/path_integral.json" in result.out
    assert "the loss really fell by" in result.out
    assert load("run/path_integral.json").provenance.settings["points"] == 2
    assert read_run("run")["status"] == "finished"
    again = cli("score", "path_integral", *score_words, "--set", "points=2", "--out", "run")
    assert again.code == 0 and again.out == result.out and "stage 1" not in again.err


def test_where_no_criterion_is_named_the_midpoint_gradient_ranks(cli, score_words):
    result = cli("score", *score_words, "--out", "run")
    assert result.code == 0 and "stored in run/path_integral.json" in result.out
    assert load("run/path_integral.json").provenance.settings["points"] == 1
    assert cli("score", *score_words, "--set", "points=3", "--out", "more").code == 0
    assert load("more/path_integral.json").provenance.settings["points"] == 3


def test_scores_can_be_one_file(cli, score_words, tmp_path):
    assert cli("score", "random", *score_words, "--out", "deep/one.json").code == 0
    assert load("deep/one.json").criterion == "random" and (tmp_path / "deep" / "one.run" / "run.json").is_file()
    assert cli("score", "random", "delta_norm", *score_words, "--out", "two.json").code == 0
    assert load("two-random.json").criterion == "random" and load("two-delta_norm.json").criterion == "delta_norm"


def test_weights_alone_can_be_scored_without_data(cli, world, monkeypatch):
    from keylayers.inputs.text import Inputs

    monkeypatch.setattr(Inputs, "load_model", lambda self, **options: pytest.fail("loaded the model"))
    result = cli("score", "signal_noise", "depth_only", "--model", world.model, "--out", "run")
    assert result.code == 0 and "reading" not in result.err and "the 10 most critical of 22 layers" in result.out
    assert load("run/signal_noise.json").values.max() <= 1
    wrong = cli("score", "signal_noise", "--model", world.model, "--set", "variant=best", "--out", "other")
    assert wrong.code == 2 and "unknown signal_noise variant 'best'" in wrong.err


def test_without_out_the_folder_is_named_after_model_and_data(cli, score_words, tmp_path):
    assert cli("score", "random", *score_words).code == 0
    assert (tmp_path / "runs" / "score-model-data" / "random.json").is_file()


def test_another_run_in_the_same_folder_is_refused_listing_what_differs_until_fresh(cli, score_words):
    assert cli("score", "random", *score_words, "--out", "run").code == 0
    result = cli("score", "random", *score_words, "--out", "run", "--set", "seed=5")
    assert result.code == 2 and "settings.seed: not stored, given '5'" in result.err and "--fresh" in result.err
    assert cli("score", "random", *score_words, "--out", "run", "--set", "seed=5", "--fresh").code == 0
    assert load("run/random.json").provenance.seed == 5


def test_tune_compares_arms_and_stores_the_first(cli, scores, tune_words, tmp_path):
    result = cli("tune", *tune_words, "--scores", scores, "--against", "random:30%:match=params", "--out", "run")
    assert result.code == 0
    lines = [line for line in result.out.splitlines() if line.startswith(("top:30%", "random:30%"))]
    assert len(lines) == 2 and "the tuned model is in run/tuned" in result.out
    assert "trainable" in result.err and "backward pass through" in result.err
    assert (tmp_path / "run" / "tuned" / "adapter_config.json").is_file()
    stored = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert [arm["policy"] for arm in stored["arms"]] == ["top:30%", "random:30%:match=params"]


def test_a_scoring_run_is_a_tuned_model_for_another(cli, score_words):
    assert cli("score", "delta_norm", *score_words, "--out", "first").code == 0
    result = cli("score", "delta_norm", *score_words, "--tuned", "first", "--out", "second")
    assert result.code == 0 and "stage 1" not in result.err
    assert load("second/delta_norm.json").by_name() == load("first/delta_norm.json").by_name()


def test_revert_writes_a_checkpoint(cli, world, scores, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(world.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    model.save_pretrained("tuned")
    words = ("--model", world.model, "--tuned", "tuned", "--scores", scores)
    result = cli("revert", *words, "--out", "kept", "--select", "top:50%", "--remainder", "base")
    assert result.code == 0 and "kept: " in result.out and "tensors from tuned" in result.out
    assert re.search(r"tensors are the base model's: model.embed_tokens.weight.* \(--remainder base\)", result.out)
    assert (tmp_path / "kept" / "model.safetensors").is_file()
    assert "unknown remainder 'bsae'" in cli("revert", *words, "--out", "other", "--remainder", "bsae").err
    assert "exists already" in cli("revert", *words, "--out", "kept").err
    assert "did you mean 'top'" in cli("revert", *words, "--out", "other", "--select", "topp:50%").err
    assert "is a LoRA adapter" not in result.err


# Bad input: (command, what is put in place of the good words, what the one text says).
BAD = {
    "model": ("score random", {"--model": "nowhere/at/all"}, "no folder 'nowhere/at/all'"),
    "bundled model": ("score random", {"--model": "bundled:lama"}, "'lama'; did you mean 'llama'"),
    "criterion": ("score learned_masks", {}, "'learned_masks'; did you mean 'learned_mask'"),
    "setting": ("score path_integral", {"--set": "pionts=3"}, "'pionts'; did you mean 'points'"),
    "setting's type": ("score path_integral", {"--set": "points=x"}, "points=x of path_integral"),
    "setting's form": ("score path_integral", {"--set": "points"}, "--set 'points': expected KEY=VALUE"),
    "column": ("score path_integral", {"--column": "prompt=promt"}, "'promt'; did you mean 'prompt'"),
    "granularity": ("score random", {"--granularity": "liner"}, "'liner'; did you mean 'linear'"),
    "dtype": ("score random", {"--dtype": "float3"}, "'float3'; did you mean"),
    "bundled data": ("score path_integral", {"--data": "bundled:pirat"}, "'pirat'; did you mean 'pirate'"),
    "data file": ("score path_integral", {"--data": "nowhere.jsonl"}, "no such data file: nowhere.jsonl"),
    "empty data": ("score path_integral", {"--data": "empty.jsonl"}, "empty.jsonl"),
    "malformed data": ("score path_integral", {"--data": "bad.jsonl"}, "bad.jsonl:2: invalid JSON"),
    "no supervised token": ("score path_integral", {"--max-length": "3"}, "data with no supervised token"),
    "tuned": ("score delta_norm", {"--tuned": "nowhere/at/all"}, "no folder 'nowhere/at/all'"),
    "other tuned": ("score delta_norm", {"--tuned": "other/model"}, "are not two versions of one model"),
    "pickle": ("score random", {"--model": "pickled"}, "is a pickle, which can run code"),
    "NaN weights": ("score path_integral", {"--model": "broken"}, "the training loss is nan at step 1 of 3"),
    "steps": ("score path_integral", {"--steps": "0"}, "--steps 0: expected a whole number of at least 1"),
    "rank": ("score path_integral", {"--rank": "0"}, "--rank 0: expected a whole number of at least 1"),
    "out": ("score random", {"--out": "file/run"}, "file/run"),
    "foreign out": ("score random", {"--out": "other"}, "but no run.json"),
    "policy": ("tune", {"--select": "topp:30%"}, "'topp'; did you mean 'top'"),
    "control policy": ("tune", {"--against": "botom:30%"}, "'botom'; did you mean 'bottom'"),
    "policy's form": ("tune", {"--select": "top"}, "does not say how much; for example 'top:30%'"),
    "no scores": ("tune", {"--select": "top:30%"}, "only layers were given; give scores"),
    "empty choice": ("tune", {"--select": "blocks:9"}, "9"),
    "method": ("tune", {"--method": "loraa"}, "'loraa'; did you mean 'lora'"),
    "score file": ("tune", {"--scores": "empty.jsonl"}, "is not whole, strict JSON"),
    "foreign scores": ("tune", {"--scores": "foreign.json", "--select": "top:30%"}, "scored layers are not in it"),
    "divergence": ("tune", {"--lr": "1e30"}, "at step 2 of 3; lower the learning rate (--lr, now 1e+30)"),
    "seeds": ("tune", {"--seeds": "0"}, "--seeds 0: expected a whole number of at least 1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def mistakes(world, tmp_path_factory):
    """A folder with files that are wrong in one way each."""
    from keylayers.layers import named_layers
    from keylayers.scores import LayerScores, save
    from tests.tiny_models import build

    place = tmp_path_factory.mktemp("mistakes")
    (place / "empty.jsonl").write_text("")
    (place / "bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    (place / "file").write_text("")
    make(place / "other", blocks=2)
    shutil.copytree(world.model, place / "pickled")
    (place / "pickled" / "model.safetensors").rename(place / "pickled" / "pytorch_model.bin")
    from safetensors.torch import load_file, save_file

    shutil.copytree(world.model, place / "broken")
    tensors = load_file(world.model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, place / "broken" / "model.safetensors", metadata={"format": "pt"})
    layers = named_layers(build("gpt2"))
    save(LayerScores(layers, list(range(len(layers))), "random", "linear"), place / "foreign.json")
    return place


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_text_and_status_2(cli, mistakes, score_words, tmp_path, case):
    command, changes, said = BAD[case]
    shutil.copytree(mistakes, tmp_path, dirs_exist_ok=True)
    words = {str(flag): str(value) for flag, value in zip(score_words[::2], score_words[1::2], strict=True)}
    words |= {"--out": "run"} | ({"--select": "last:4"} if command == "tune" else {}) | changes
    result = cli(*command.split(), *(word for pair in words.items() for word in pair))
    assert result.code == 2, result
    assert said in result.err and "Traceback" not in result.err
    assert not list(tmp_path.glob("run/*.safetensors")) and not (tmp_path / "run" / "tuned").exists()
    assert not [path for path in tmp_path.glob("run/*.json") if path.name != "run.json"]


def test_a_wrong_policy_stops_tuning_before_a_run_folder_is_made(cli, tune_words, tmp_path):
    assert cli("tune", *tune_words, "--select", "topp:3", "--out", "run").code == 2
    assert not (tmp_path / "run").exists()


def test_data_is_needed_by_criteria_that_look_at_it_alone(cli, world):
    result = cli("score", "random", "--model", world.model, "--tuned", world.model)
    assert result.code == 0 and load("runs/score-model/random.json").provenance.data == ()
    for words, said in (
        (["fisher", "--tuned", "x"], "fisher looks at data, and none is named; name some as --data."),
        (["delta_norm"], "name data as --data, or name a tuned checkpoint, adapter or run as --tuned."),
    ):
        result = cli("score", *words, "--model", "nowhere")
        assert result.code == 2 and said in result.err


@pytest.mark.parametrize(
    "command", ["score random", "tune --data d", "share s.json --tuned t --data d", "league --data d"]
)
def test_no_bundled_model_or_data_stands_for_ones_own(cli, command):
    result = cli(*command.split())
    assert result.code == 2 and "Missing option '--model'" in result.err
    if command.startswith(("tune", "share", "league")):
        result = cli(*command.replace("--data", "--model").split())
        assert result.code == 2 and "Missing option '--data'" in result.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("learned_mask", "--set", "steps=-3"),
            "--set steps=-3 of learned_mask: expected a whole number of at least 1",
        ),
        (("learned_mask", "--set", "learning_rate=nan"), "--set learning_rate=nan of learned_mask: expected a number"),
        (("first_step", "--set", "seed=-1"), "--set seed=-1 of first_step"),
        (("fisher", "--measure", "tokens"), "--measure tokens: fisher takes no measure"),
        (("path_integral", "--lr", "nan"), "--lr nan: expected a number above 0"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_loaded_or_made(cli, tmp_path, words, said):
    result = cli("score", *words, "--model", "nowhere", "--data", "nowhere.jsonl", "--out", "run")
    assert result.code == 2 and said in result.err and not (tmp_path / "run").exists()
