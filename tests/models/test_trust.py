"""Nothing of a model folder runs, is asked about or waits, unless the user said so."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from keylayers.errors import BadInput
from keylayers.layers.naming import named_layers
from keylayers.models import deltas_of, load_model, load_shape, trust
from keylayers.models.sources import stated_source
from tests.layers.helpers import with_lora
from tests.tiny_models import build

OWN = """
import os
open(os.environ["RAN"], "w").close()
from transformers import {base}
class Own({base}): ...
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    build("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder that brings its own Python file."""
    shutil.copytree(saved, tmp_path / "model")
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    (tmp_path / "model" / "own.py").write_text(OWN.format(base="LlamaForCausalLM"))
    return tmp_path / "model"


def change(folder: Path, name: str = "config.json", **fields: object) -> None:
    file = folder / name
    stated = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(stated | fields))


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        call()
    return str(caught.value)


CODE = {"AutoModelForCausalLM": "own.Own"}


def test_a_known_model_loads_without_the_code_it_brings(folder: Path) -> None:
    change(folder, auto_map=CODE, attn_implementation="someone/kernel", experts_implementation="someone/kernel")
    for model in (load_shape(str(folder)), load_model(str(folder)).model):
        assert type(model).__module__.startswith("transformers.")
        assert not getattr(model.config, "auto_map", None) and "/" not in model.config._attn_implementation
    assert not (folder.parent / "ran").exists()


def test_code_is_dropped_at_every_depth(tmp_path: Path) -> None:
    inner = {"model_type": "llama", "auto_map": CODE, "attn_implementation": "someone/kernel"}
    outer = {"model_type": "llava", "text_config": inner, "anything": [{"auto_map": CODE}]}
    change(tmp_path, **outer, architectures=["LlavaForConditionalGeneration"])
    config = trust.config_of(str(tmp_path), trust.Trust())
    assert "auto_map" not in json.dumps(config.to_dict()) and config.text_config._attn_implementation is None


@pytest.mark.parametrize("load", [load_model, load_shape])
def test_a_model_that_only_its_own_code_can_build_is_refused(folder: Path, load: Callable) -> None:
    change(folder, auto_map=CODE, architectures=["OwnForCausalLM"])
    assert "'OwnForCausalLM', which is no model of transformers" in refused(lambda: load(str(folder)))
    change(folder, model_type="own")
    text = refused(lambda: load(str(folder)))
    assert "needs code of its own (own.Own)" in text and "`trust_remote_code`" in text
    assert not (folder.parent / "ran").exists()


def test_code_runs_where_it_is_trusted(folder: Path) -> None:
    change(folder, auto_map={"AutoModelForCausalLM": "own.Own"}, architectures=["OwnForCausalLM"])
    assert load_model(str(folder), trust_remote_code=True).model.num_parameters() > 0
    assert (folder.parent / "ran").exists()


NO_MODELS = ["pipeline", "AutoModel", "LlamaConfig", "PreTrainedModel", "_LazyModule", "models", "", 5, {}]


@pytest.mark.parametrize("name", NO_MODELS, ids=str)
def test_an_architecture_is_a_model_of_transformers_or_nothing(folder: Path, name: object) -> None:
    change(folder, architectures=[name])
    assert "architecture" in refused(lambda: load_shape(str(folder)))


@pytest.mark.parametrize("stated", [[], None, "LlamaForCausalLM"], ids=str)
def test_a_model_that_names_no_architecture_is_a_causal_language_model(folder: Path, stated: object) -> None:
    change(folder, architectures=stated)
    assert type(load_shape(str(folder))).__name__ == "LlamaForCausalLM"


FAULTS = {
    "text for a number": {"num_hidden_layers": "5"},
    "negative": {"intermediate_size": -1},
    "unknown precision": {"dtype": "9loat32"},
    "uneven heads": {"num_attention_heads": 7},
    "unknown activation": {"hidden_act": "nope"},
    "no mapping": {"rope_scaling": 5},
    "an attribute that is a method": {"to_dict": 5, "get_text_config": 5},
    "a list for the type": {"model_type": ["llama"]},
    "a number for the code": {"auto_map": 5, "model_type": "own"},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_configuration_is_explained(folder: Path, fault: str) -> None:
    change(folder, **FAULTS[fault])
    assert str(folder) in refused(lambda: load_shape(str(folder)))


@pytest.mark.parametrize("text", ["[" * 3000 + "]" * 3000, "[]", "5", '{"a": ', "\x00"])
def test_what_is_no_configuration_is_explained(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert str(folder) in refused(lambda: load_shape(str(folder)))


def test_a_tokenizer_is_a_tokenizer_or_nothing(folder: Path) -> None:
    for name in ("pipeline", "AutoModelForCausalLM", "LlamaForCausalLMFast", 5):
        change(folder, "tokenizer_config.json", tokenizer_class=name)
        loaded = load_model(str(folder))
        assert loaded.tokenizer is None and "tokenizer" in loaded.no_tokenizer and repr(name) in loaded.no_tokenizer


def test_a_tokenizer_of_its_own_does_not_run(folder: Path) -> None:
    (folder / "own.py").write_text(OWN.format(base="PreTrainedTokenizerFast"))
    change(folder, auto_map=CODE)
    for own in (["own.Own", None], {"AutoTokenizer": ["own.Own", "own.Own"]}, 5):
        change(folder, "tokenizer_config.json", auto_map=own, tokenizer_class="OwnTokenizer")
        load_model(str(folder))
    assert not (folder.parent / "ran").exists()


def test_a_damaged_tokenizer_is_no_missing_one(folder: Path) -> None:
    assert load_model(str(folder)).no_tokenizer == ""
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": 5}}')
    assert "cannot read the tokenizer" in load_model(str(folder)).no_tokenizer


def test_pickles_are_refused_under_every_name(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "adapter_model.bin")
    change(folder, transformers_weights="adapter_model.bin")
    assert "is a pickle" in refused(lambda: load_model(str(folder)))
    change(folder, transformers_weights=None)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    change(folder, "model.safetensors.index.json", metadata={}, weight_map={"lm_head.weight": "adapter_model.bin"})
    assert "is a pickle" in refused(lambda: load_model(str(folder)))


def test_a_hub_id_is_held_to_the_same(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("0" * 40)
    shutil.copytree(saved, snapshot)
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_model("some/model").model.num_parameters() > 0
    change(snapshot, "model.safetensors.index.json", weight_map={"lm_head.weight": "pytorch_model.bin"})
    assert "is a pickle" in refused(lambda: load_model("some/model"))
    change(snapshot, "adapter_config.json", base_model_name_or_path="some/other")
    assert "is a LoRA adapter" in refused(lambda: load_model("some/model"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
def test_a_folder_in_which_a_library_would_wait_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(BadInput):
        load_model(str(folder))
    with pytest.raises(BadInput):
        load_shape(str(folder))


@pytest.mark.parametrize("source", ["x" * 300, "a\0b", "https://huggingface.co/org/name", "org/na me", "\ud800", "~\0"])
def test_a_name_that_no_model_has_is_explained(source: str) -> None:
    refused(lambda: load_shape(source))


def test_a_file_names_only_what_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYLAYERS_MODELS", "/models")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert stated_source("$KEYLAYERS_MODELS/a") == stated_source("${KEYLAYERS_MODELS}/a") == "/models/a"
    assert stated_source("bundled:llama") == "bundled:llama"
    for stated in ("org/$HF_TOKEN", "os:getcwd", "$KEYLAYERS_ABSENT/a", "", None, "$HOME"):
        assert "secret" not in refused(lambda stated=stated: stated_source(stated))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    with_lora(build("llama")).save_pretrained(folder)
    return folder


UNSAFE = {
    "another kind": {"peft_type": "PROMPT_TUNING", "tokenizer_kwargs": {"trust_remote_code": True}},
    "a kind that is none": {"peft_type": ["LORA"]},
    "a module by name": {"megatron_config": {"a": 1}, "megatron_core": "own"},
    "other adapters": {"arrow_config": {"top_k": 1}},
    "a pickled start": {"init_lora_weights": "corda", "corda_config": {"cache_file": "own.bin"}},
    "text for a number": {"r": "eight"},
}


@pytest.mark.parametrize("case", UNSAFE)
def test_an_adapter_configuration_makes_peft_run_nothing(adapter: Path, tmp_path: Path, case: str) -> None:
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    change(tmp_path, "adapter_config.json", **UNSAFE[case])
    base = build("llama")
    assert str(tmp_path) in refused(lambda: deltas_of(base, tmp_path, named_layers(base)))


def test_what_an_adapter_was_trained_by_is_left_out(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path, dirs_exist_ok=True)
    own = {"auto_mapping": {"parent_library": "own", "base_model_class": "Own"}, "base_model_name_or_path": "own/own"}
    change(tmp_path, "adapter_config.json", init_lora_weights="eva", corda_config={"cache_file": "/dev/zero"}, **own)
    base = build("llama")
    layers = named_layers(base)
    assert torch.equal(deltas_of(base, tmp_path, layers).norms(), deltas_of(base, adapter, layers).norms())


def test_pickled_weights_of_a_tuned_model_are_read_where_allowed(adapter: Path, saved: Path, tmp_path: Path) -> None:
    base = build("llama")
    layers = named_layers(base)
    state = {name: value + 1 for name, value in base.state_dict().items()}
    for name, folder, stored in (
        ("adapter_model", adapter, load_file(adapter / "adapter_model.safetensors")),
        ("pytorch_model", saved, state),
    ):
        place = tmp_path / name
        shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors"))
        torch.save(stored, place / f"{name}.bin")
        assert "is a pickle" in refused(lambda place=place: deltas_of(base, place, layers))
        norms = deltas_of(base, place, layers, allow_pickle=True).norms()
        assert norms.gt(0).any()
    assert norms.tolist() == pytest.approx([layer.size**0.5 for layer in layers], rel=1e-4)
    assert torch.equal(
        deltas_of(base, tmp_path / "adapter_model", layers, allow_pickle=True).norms(),
        deltas_of(base, adapter, layers).norms(),
    )


class Runs:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["RAN"],)


def test_code_in_an_allowed_pickle_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Runs()}, folder / "pytorch_model.bin")
    base = build("llama")
    refused(lambda: load_model(str(folder), allow_pickle=True))
    refused(lambda: deltas_of(base, folder, named_layers(base), allow_pickle=True))
    assert not (folder.parent / "ran").exists()
