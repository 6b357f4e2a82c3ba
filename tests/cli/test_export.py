"""keylayers export: files on stdout as they are, the rest on stderr; bad input is one text and leaves nothing."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from keylayers.exports import TARGETS
from keylayers.layers import named_layers
from keylayers.models import load_shape
from keylayers.scores import LayerScores, Provenance, save

SELECTED = ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj")


def score(path: Path, model: Path | str, granularity: str = "linear", low: float = 0.1, **origin: object) -> Path:
    """Writes scores of a model: the two SELECTED layers are the highest, the others fall in forward order."""
    layers = named_layers(load_shape(str(model)), granularity)
    values = np.linspace(1.0, low, len(layers))
    for index, layer in enumerate(layers):
        if layer.name in SELECTED:
            values[index] = 4.0 - SELECTED.index(layer.name)
    identity = {"id": str(model), "architecture": "LlamaForCausalLM", **origin}
    save(LayerScores(layers, values, "by_hand", granularity, Provenance(model=identity)), path)
    return path


@pytest.fixture(scope="module")
def scores(world, tmp_path_factory) -> Path:
    return score(tmp_path_factory.mktemp("scores") / "scores.json", world.model)


def files(folder: Path) -> list[str]:
    """Every file below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


NAMED = {
    "peft": lambda text: json.loads(text)["target_modules"],
    "trl": lambda text: yaml.safe_load(text)["lora_target_modules"],
    "axolotl": lambda text: yaml.safe_load(text)["lora_target_modules"],
    "axolotl-full": lambda text: [name[1:-8] for name in yaml.safe_load(text)["unfrozen_parameters"]],
    "llamafactory": lambda text: yaml.safe_load(text)["lora_target"].split(","),
    "unsloth": lambda text: json.loads(text)["target_modules"],
    "mergekit": lambda text: [
        row["filter"][:-1]
        for row in yaml.safe_load(text)["models"][0]["parameters"]["weight"]
        if row.get("filter", "")[-1:] == "."
    ],
}
"""Target -> the layers its one file names."""


@pytest.mark.parametrize("target", NAMED)
def test_stdout_is_exactly_the_file_and_stderr_says_what_matched(cli, scores, target):
    shown = cli("export", scores, "--select", "top:2", "--to", target)
    assert shown.code == 0, shown.err
    assert sorted(NAMED[target](shown.out)) == sorted(SELECTED)
    assert f"{target}: 2/22 layers, 2/3 blocks, " in shown.err and "matched exactly these (2 " in shown.err
    assert "top:2 of" in shown.err and f"{target}, how to use it: " in shown.err
    written = cli("export", scores, "--select", "top:2", "--to", target, "--out", "deep/folder")
    (name,) = files(Path("deep/folder"))
    assert written.code == 0 and written.out == "" and f"written: deep/folder/{name}" in written.err
    assert Path("deep/folder", name).read_text() == shown.out


def test_every_target_at_once_in_folders_of_their_own(cli, scores):
    words = [word for target in TARGETS for word in ("--to", target)]
    result = cli("export", scores, "--select", "top:2", *words, "--nearest", "--tuned", "some/tuned", "--out", "all")
    assert result.code == 0, result.err
    assert {Path(name).parts[0] for name in files(Path("all"))} == set(TARGETS)
    assert "some/tuned" in Path("all/mergekit/mergekit.yaml").read_text() and "no --tuned" not in result.err
    assert "no --tuned is given" in cli("export", scores, "--select", "top:2", "--to", "mergekit").err


def test_several_files_are_shown_under_their_names(cli, scores):
    result = cli("export", scores, "--select", "top:2", "--to", "peft", "--to", "trl", "--to", "peft")
    alone = {target: cli("export", scores, "--select", "top:2", "--to", target).out for target in ("peft", "trl")}
    assert result.out == (f"==> peft/adapter_config.json <==\n{alone['peft']}==> trl/trl.yaml <==\n{alone['trl']}")
    spectrum = cli("export", scores, "--select", "top:2", "--to", "spectrum")
    assert spectrum.out.count("==> ") == 2


def test_the_configuration_names_the_model_and_its_ranks(cli, world, scores):
    result = cli("export", scores, "--select", "top:2", "--to", "peft", "--rank", 8)
    stored = json.loads(result.out)
    assert stored["base_model_name_or_path"] == str(world.model)
    assert (stored["r"], stored["lora_alpha"], stored["rank_pattern"]) == (8, 16, {})
    assert json.loads(cli("export", scores, "--to", "peft", "--alpha", 5).out)["lora_alpha"] == 5


def test_ranks_by_score_keep_their_mean_and_say_what_they_cost(cli, scores):
    result = cli("export", scores, "--select", "top:2", "--to", "peft", "--rank", 7, "--ranks", "by-score")
    assert result.code == 0, result.err
    assert sorted(json.loads(result.out)["rank_pattern"].values()) == [6, 8]  # 14 in proportion 4 : 3
    # q_proj is 16 x 16, down_proj 24 x 16
    assert f"ranks 6 to 8, mean 7: adapters of {8 * 32 + 6 * 40} parameters ({7 * 72} at equal ranks)" in result.err
    full = cli("export", scores, "--select", "top:2", "--to", "axolotl-full", "--ranks", "by-score")
    assert full.code == 0 and "axolotl-full has no adapters, so no ranks either" in full.err


def test_ranks_a_target_has_no_words_for_are_refused_or_dropped_aloud(cli, scores):
    words = ("export", scores, "--select", "top:2", "--to", "llamafactory", "--rank", 7, "--ranks", "by-score")
    refused = cli(*words)
    assert refused.code == 2 and refused.out == "" and "one rank for all layers" in refused.err
    nearest = cli(*words, "--nearest")
    assert nearest.code == 0 and "llamafactory: with equal ranks" in nearest.err
    assert nearest.out == cli(*words[:-2]).out


def test_nearest_writes_what_can_be_said_and_names_the_difference(cli, world, tmp_path):
    blocks = score(tmp_path / "blocks.json", world.model, "block")
    words = ("export", blocks, "--select", "blocks:1", "--to", "trl")
    refused = cli(*words)
    assert refused.code == 2 and refused.out == "" and "--nearest" in refused.err
    result = cli(*words, "--nearest")
    assert result.code == 0, result.err
    named = yaml.safe_load(result.out)["lora_target_modules"]
    assert len(named) == 7 and all(name.startswith("model.layers.1.") for name in named)
    assert "not blocks:1, but the nearest it can express: 7 more: model.layers.1." in result.err
    assert "; 1 fewer: model.layers.1" in result.err
    exact = cli(*words[:-1], "axolotl-full", "--nearest")
    assert exact.code == 0 and "nearest" not in exact.err


def test_a_refused_target_leaves_no_file_of_the_others(cli, world, tmp_path):
    blocks = score(tmp_path / "blocks.json", world.model, "block")
    words = ("export", blocks, "--select", "blocks:1", "--to", "axolotl-full", "--to", "peft", "--out", "out")
    assert cli(*words).code == 2
    assert not (tmp_path / "out").exists()


def test_a_scoring_run_stands_for_its_score_file(cli, scores, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    empty = cli("export", run, "--to", "peft")
    assert empty.code == 2 and "run holds no layer_scores.json" in empty.err
    shutil.copy(scores, run / "random.json")
    one = cli("export", run, "--to", "peft")
    assert one.code == 0 and one.out == cli("export", scores, "--to", "peft").out
    shutil.copy(scores, run / "delta_norm.json")
    two = cli("export", run, "--to", "peft")
    assert two.code == 2 and "2 criteria; name one of them" in two.err and "delta_norm.json" in two.err
    (tmp_path / "folder").mkdir()
    shutil.copy(scores, tmp_path / "folder" / "layer_scores.json")
    assert cli("export", "folder", "--to", "peft").out == one.out


def test_settings_may_come_from_a_file_and_flags_win(cli, scores):
    Path("config.yaml").write_text("to: [peft]\nselect: 'top:3'\nrank: 5\n")
    stored = json.loads(cli("export", scores, "--config", "config.yaml", "--rank", 6).out)
    assert stored["r"] == 6 and len(stored["target_modules"]) == 3


def test_the_bundled_model_is_given_as_a_folder_other_tools_can_load(cli, tmp_path):
    path = score(tmp_path / "scores.json", "bundled:llama")
    stored = json.loads(cli("export", path, "--to", "peft").out)
    assert (Path(stored["base_model_name_or_path"]) / "config.json").is_file()


def test_a_place_with_a_variable_is_filled_in(cli, world, monkeypatch, tmp_path):
    path = score(tmp_path / "scores.json", world.model, id="$KEYLAYERS_TEST/model")
    unset = cli("export", path, "--to", "peft")
    assert (
        unset.code == 2 and "of '$KEYLAYERS_TEST/model'; set that variable, or name the model as --model" in unset.err
    )
    monkeypatch.setenv("KEYLAYERS_TEST", str(world.model.parent))
    assert json.loads(cli("export", path, "--to", "peft").out)["base_model_name_or_path"] == str(world.model)


def test_no_variable_but_ours_is_filled_in(cli, world, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET_TOKEN", "hf_abc")
    result = cli("export", score(tmp_path / "scores.json", world.model, id="org/${SECRET_TOKEN}"), "--to", "peft")
    assert result.code == 2 and "only variables called KEYLAYERS_" in result.err and "hf_abc" not in result.err


def test_another_model_with_the_same_layers_is_taken_and_said(cli, world, scores, tmp_path):
    shutil.copytree(world.model, tmp_path / "copy")
    result = cli("export", scores, "--to", "peft", "--model", "copy")
    assert result.code == 0 and "the model is copy, which has the same layers" in result.err
    assert json.loads(result.out)["base_model_name_or_path"] == "copy"


def test_code_named_by_a_score_file_is_not_run(cli, world, tmp_path):
    path = score(tmp_path / "scores.json", world.model, id="planted:factory")
    Path("planted.py").write_text("open('ran', 'w').close()\ndef factory(): ...\n")
    result = cli("export", path, "--to", "peft")
    assert result.code == 2 and "code that would run; if you trust it, say so: --model planted:factory" in result.err
    assert not Path("ran").exists()


# Bad input: (scores, what is put in place of the good words, what the one text says).
BAD = {
    "target": ("scores", {"--to": "axolotle"}, "'axolotle'; did you mean 'axolotl'"),
    "policy": ("scores", {"--select": "topp:2"}, "'topp'; did you mean 'top'"),
    "ranks": ("scores", {"--ranks": "by_score"}, "'by_score'; did you mean 'by-score'"),
    "rank": ("scores", {"--rank": "0"}, "--rank 0: expected a whole number of at least 1"),
    "alpha": ("scores", {"--alpha": "-1"}, "--alpha -1.0: expected a number above 0"),
    "empty selection": ("scores", {"--select": "above:99"}, "chooses none of the 22 layers"),
    "block that is not": ("scores", {"--select": "blocks:7"}, "block 7 is not in this model"),
    "negative scores": ("negative", {"--select": "all", "--ranks": "by-score"}, "negative scores, which are no share"),
    "missing file": ("nowhere.json", {}, "nowhere.json"),
    "no score file": ("config", {}, "config.json"),
    "hub id": ("some-org/some-scores", {}, "some-scores', which is no file or folder here: the hub is out"),
    "code of a model": ("unreachable", {"--trust-remote-code": ""}, "runs only where you name it"),
    "model that is not": ("scores", {"--model": "nowhere/at/all"}, "no folder 'nowhere/at/all'"),
    "unreachable model": ("unreachable", {}, "are of 'some-org/some-model', but: cannot read the configuration"),
    "moved model": ("moved", {}, "/gone/model'; give a checkpoint folder"),
    "no model": ("nameless", {}, "does not say which model it is of; name it as --model"),
    "other model": ("foreign", {"--model": "WORLD"}, "scored layers are not in it (transformer.h.0"),
    "other size": ("scores", {"--model": "wide"}, "(model.layers.0.self_attn.q_proj: 256 when scored, 512 here)"),
    "lost block": ("scores", {"--model": "shorter"}, "7 of the 22 scored layers are not in it (model.layers.2."),
    "path under a file": ("scores", {"--out": "file/out"}, "cannot write into 'file/out': file is a file"),
    "place of a file": ("scores", {"--out": "file"}, "cannot write into 'file': file is a file"),
    "place of a folder": ("scores", {"--out": "taken"}, "there is a folder of that name"),
    "other file there": ("scores", {"--out": "adapter"}, "exists and says something else; give another --out"),
}  # fmt: skip


@pytest.fixture(scope="module")
def mistakes(world, tmp_path_factory) -> Path:
    """A folder with files that are wrong in one way each."""
    place = tmp_path_factory.mktemp("mistakes")
    score(place / "negative.json", world.model, low=-1.0)
    score(place / "unreachable.json", world.model, id="some-org/some-model")
    score(place / "moved.json", world.model, id="/gone/model")
    score(place / "nameless.json", world.model, id=None)
    config = json.loads((world.model / "config.json").read_text())
    for name, changes in (("shorter", {"num_hidden_layers": 2}), ("wide", {"hidden_size": 32, "head_dim": 8})):
        shutil.copytree(world.model, place / name)
        (place / name / "config.json").write_text(json.dumps(config | changes))
    from tests.tiny_models import build

    layers = named_layers(build("gpt2"))
    save(LayerScores(layers, list(range(len(layers))), "by_hand", "linear"), place / "foreign.json")
    (place / "config.json").write_text("{}")
    (place / "file").write_text("")
    (place / "taken" / "adapter_config.json").mkdir(parents=True)
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text('{"r": 3}')
    return place


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_text_and_leaves_nothing(cli, world, scores, mistakes, tmp_path, case):
    source, changes, said = BAD[case]
    shutil.copytree(mistakes, tmp_path, dirs_exist_ok=True)
    shutil.copy(scores, tmp_path / "scores.json")
    before = files(tmp_path)
    place = f"{source}.json" if Path(f"{source}.json").is_file() else source
    words = {"--to": "peft", "--out": "out"} | changes
    result = cli(
        "export", place, *(word.replace("WORLD", str(world.model)) for pair in words.items() for word in pair if word)
    )
    assert result.code == 2 and result.out == "", result
    assert said in result.err and "Traceback" not in result.err
    assert files(tmp_path) == before and not (tmp_path / "out").exists()
    assert Path("adapter/adapter_config.json").read_text() == '{"r": 3}'


def test_the_same_export_again_is_no_conflict_and_overwrite_replaces(cli, scores):
    words = ("export", scores, "--to", "peft", "--out", "out")
    assert cli(*words, "--select", "top:2").code == 0
    assert cli(*words, "--select", "top:2").code == 0
    first = Path("out/adapter_config.json").read_text()
    assert cli(*words, "--select", "top:3").code == 2 and Path("out/adapter_config.json").read_text() == first
    assert cli(*words, "--select", "top:3", "--overwrite").code == 0
    assert len(json.loads(Path("out/adapter_config.json").read_text())["target_modules"]) == 3
    assert files(Path("out")) == ["adapter_config.json"]


def test_a_disk_that_fills_up_leaves_nothing(cli, scores, monkeypatch, tmp_path):
    real, written = os.fsync, []

    def full_at_second(descriptor):
        if written:
            raise OSError(28, "No space left on device")
        written.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full_at_second)
    before = files(tmp_path)
    result = cli("export", scores, "--to", "peft", "--to", "trl", "--out", "new/out")
    assert written and result.code == 2 and "cannot write 'new/out/" in result.err and "disk is full" in result.err
    assert files(tmp_path) == before and not (tmp_path / "new").exists()


def test_files_put_in_place_before_a_failure_are_taken_back_and_others_stay(cli, scores, monkeypatch, tmp_path):
    real = os.replace
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")

    def failing(source, place):
        if Path(place) == Path("out/peft/adapter_config.json"):
            assert Path("out/trl/trl.yaml").is_file()
            raise OSError(13, "Permission denied")
        real(source, place)

    monkeypatch.setattr(os, "replace", failing)
    result = cli("export", scores, "--to", "peft", "--to", "trl", "--out", "out")
    assert result.code == 2 and "cannot write 'out/peft/adapter_config.json'" in result.err
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["mine.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(cli, scores, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    result = cli("export", scores, "--to", "peft", "--out", "closed")
    assert result.code == 2 and "not writable" in result.err


def test_the_weights_are_not_needed(cli, world, tmp_path):
    (tmp_path / "only").mkdir()
    shutil.copy(world.model / "config.json", tmp_path / "only")
    path = score(tmp_path / "scores.json", tmp_path / "only")
    assert cli("export", path, "--to", "peft", "--to", "mergekit").code == 0


def test_help_lists_every_target(cli):
    shown = cli("export", "--help").out
    assert all(f"{name}:" in shown for name in TARGETS)


def test_scores_of_a_run_are_exported_and_attached_by_peft(cli, world, score_words):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    assert cli("score", "random", *score_words, "--out", "run").code == 0
    assert cli("export", "run", "--select", "top:4", "--to", "peft", "--out", "adapter").code == 0
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(world.model), LoraConfig.from_pretrained("adapter"))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 4
