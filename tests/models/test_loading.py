import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import parameters_of
from keylayers.models import load_model, load_shape
from keylayers.models.sources import local_folder
from tests.layers.helpers import forward_batch, logits
from tests.tiny_models import SMALL, build

FAMILIES = ["llama", "llama-tied", "gpt2", "gpt-neox", "t5", "bert", "vit", "hf-resnet", "olmoe", "mixtral"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_saved_is_loaded(tmp_path: Path, name: str) -> None:
    model = build(name).train()
    model.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded.model) is type(model)
    assert not loaded.model.training and loaded.folder == tmp_path and loaded.source == str(tmp_path)
    state = model.state_dict()
    assert loaded.model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())
    with torch.no_grad():
        batch = forward_batch(name)
        assert torch.equal(logits(loaded.model, batch), logits(model.eval(), batch))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_shape_of_a_folder_takes_no_memory(tmp_path: Path, name: str) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    shape = load_shape(str(tmp_path))
    assert all(parameter.is_meta for parameter in shape.parameters())
    granularity = "conv" if name == "hf-resnet" else "linear"
    assert named_layers(shape, granularity) == named_layers(model, granularity)


def test_a_shape_needs_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert len(named_layers(load_shape(str(folder)))) == 22


def test_shards_are_loaded(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in load_model(str(tmp_path)).model.state_dict().items())


@pytest.mark.parametrize(("asked", "given"), [("auto", "float32"), ("bfloat16", "bfloat16"), ("float64", "float64")])
def test_precision(tmp_path: Path, asked: str, given: str) -> None:
    build("llama").bfloat16().save_pretrained(tmp_path)
    assert load_model(str(tmp_path), dtype=asked, device="cpu").model.dtype == getattr(torch, given)


def test_an_unknown_precision_offers_the_nearest(folder: Path) -> None:
    with pytest.raises(UnknownName, match="unknown dtype 'bfloat'; did you mean 'bfloat16'"):
        load_model(str(folder), dtype="bfloat")


def test_four_bit(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    hf.LlamaForCausalLM(hf.LlamaConfig(**{**SMALL, "hidden_size": 64, "intermediate_size": 128})).save_pretrained(
        tmp_path
    )
    loaded = load_model(str(tmp_path), four_bit=True, device="cpu")
    plain = load_model(str(tmp_path), device="cpu")
    packed = parameters_of(loaded.model)["model.layers.0.mlp.down_proj.weight"]
    assert packed.dtype == torch.uint8 and packed.numel() * 2 == 64 * 128
    assert loaded.identity() | {"id": ""} == plain.identity() | {"id": ""}, "sizes are those before quantisation"


def test_identity_counts_a_tied_weight_once(tmp_path: Path) -> None:
    model = build("llama-tied")
    model.save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).identity() == {
        "id": str(tmp_path),
        "revision": None,
        "architecture": "LlamaForCausalLM",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


@pytest.mark.parametrize(("name", "context"), [("llama", 64), ("gpt2", 64), ("t5", 1024)])
def test_context(tmp_path: Path, name: str, context: int) -> None:
    build(name).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).context == context


def test_a_tokenizer_comes_along(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    assert load_model(str(folder)).tokenizer is None
    tokens = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    hf.PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="?").save_pretrained(folder)
    assert load_model(str(folder)).tokenizer("b")["input_ids"] == [1]


@pytest.mark.parametrize("load", [load_model, load_shape])
def test_an_unknown_bundled_name_offers_the_nearest(load) -> None:
    with pytest.raises(UnknownName, match="unknown bundled model 'lama'; did you mean 'llama'"):
        load("bundled:lama")


@pytest.mark.parametrize("load", [load_model, load_shape])
@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "~/nothing-here", "a/b/c"])
def test_a_missing_folder_is_refused(load, source: str) -> None:
    with pytest.raises(BadInput, match=f"no folder '{source}'; give a checkpoint folder"):
        load(source)


@pytest.mark.parametrize("source", ["someone/no-such-model", "no-such-model"])
def test_a_hub_id_out_of_reach_says_what_was_expected(source: str) -> None:
    said = f"cannot read the configuration of '{source}': .*; give a hub id that is reachable or cached"
    for load in (load_model, load_shape):
        with pytest.raises(BadInput, match=said):
            load(source)


def test_a_folder_without_a_configuration_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match=r"has no config\.json, so it is no Hugging Face checkpoint folder"):
        load_model(str(folder))


def test_a_configuration_of_nothing_known_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(BadInput, match="model type `no-such-type`"):
        load_model(str(folder))
    (folder / "config.json").write_text("{broken")
    with pytest.raises(BadInput, match="cannot read the configuration"):
        load_shape(str(folder))


def test_an_adapter_folder_is_no_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(BadInput, match="is a LoRA adapter, not a model; give its base model"):
        load_model(str(folder))


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"has no \.safetensors file"):
        load_model(str(folder))


def test_a_pickle_is_refused_unless_allowed(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin is a pickle.*allow_pickle"):
        load_model(str(folder))
    loaded = load_model(str(folder), allow_pickle=True).model
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_a_checkpoint_that_lacks_tensors_is_refused_instead_of_filled_with_random_numbers(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lacks 1 tensors .*\(model\.layers\.1\.mlp\.up_proj\.weight\)"):
        load_model(str(folder))


def test_a_truncated_checkpoint_is_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInput, match="cannot load model"):
        load_model(str(folder))


def test_a_checkpoint_of_other_shapes_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(BadInput, match="cannot load model"):
        load_model(str(folder))


def test_weights_do_not_go_with_a_folder(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"`weights` goes with a factory \(package\.module:function\)"):
        load_model(str(folder), weights="w.safetensors")


def test_local_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert local_folder("llama") == Path("llama")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert local_folder("~/llama") == folder
    assert local_folder("org/name") is None
    assert (local_folder("bundled:llama") or Path()).name == "bundled"
