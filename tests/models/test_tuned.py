"""Deltas of whatever is named as the tuned model, compared with deltas of models in memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.adapted import deltas_from_adapter, unloaded
from keylayers.layers.deltas import Deltas, deltas_from_checkpoints
from keylayers.layers.gating import gated
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import parameters_of
from keylayers.layers.tensors import tensors_on_disk
from keylayers.models import deltas_of, loading, tuned
from tests.layers.helpers import finest, forward_batch, full_state, logits, noisy_copy, pair, same_state, with_lora
from tests.tiny_models import ALL, build

STORED_UNDER_OTHER_NAMES = {"gpt-neox", "olmoe", "qwen3-moe", "mixtral", "deepseek-v3", "vit"}
SAVED = [name for name in ALL if name != "cifar-resnet"]


def every(deltas: Deltas) -> dict:
    return {name: delta for change in (*deltas.changes, deltas.remainder) for name, delta in change.items()}


def assert_equal_deltas(found: Deltas, wanted: Deltas) -> None:
    assert [set(change) for change in found.changes] == [set(change) for change in wanted.changes]
    assert set(found.remainder) == set(wanted.remainder)
    for name, delta in every(wanted).items():
        assert torch.equal(every(found)[name].dense(), delta.dense()), name


@pytest.mark.parametrize("name", SAVED)
def test_a_folder_gives_the_deltas_whatever_names_it_stores(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, other = pair(name)
    other.save_pretrained(tmp_path)
    loads: list[str] = []
    monkeypatch.setattr(tuned, "load_model", lambda *a, **k: (loads.append(a[0]), loading.load_model(*a, **k))[1])
    layers, before = named_layers(base, finest(name)), full_state(base)
    deltas = deltas_of(base, str(tmp_path), layers)
    assert_equal_deltas(deltas, deltas_from_checkpoints(base, other, layers))
    assert bool(loads) == (name in STORED_UNDER_OTHER_NAMES), "a second model is loaded only where it must be"
    assert str(tmp_path) in deltas.source
    assert same_state(before, full_state(base))


@pytest.mark.parametrize("name", ["olmoe", "mixtral"])
def test_two_folders_of_a_mixture_are_not_compared_by_their_stored_names(tmp_path: Path, name: str) -> None:
    """Stored, every expert is a tensor of its own, which is no layer; the error says so instead of scoring nothing."""
    base, other = pair(name)
    base.save_pretrained(tmp_path / "base")
    other.save_pretrained(tmp_path / "tuned")
    sources = tensors_on_disk(tmp_path / "base"), tensors_on_disk(tmp_path / "tuned")
    with pytest.raises(UnknownName, match=r"unknown parameter of a layer '.*\.mlp\.experts\.gate_up_proj'"):
        deltas_from_checkpoints(*sources, named_layers(base))


def test_a_bf16_checkpoint_is_compared_with_the_base_as_it_is(tmp_path: Path) -> None:
    base, other = pair("llama")
    base.bfloat16().float()
    other.bfloat16().save_pretrained(tmp_path)
    deltas = deltas_of(base, tmp_path, named_layers(base))
    with torch.no_grad(), gated(base, deltas, deltas.uniform(1.0)):
        assert torch.allclose(
            logits(base, forward_batch("llama")), logits(other.float(), forward_batch("llama")), atol=1e-5
        )


def test_shards_stream(tmp_path: Path) -> None:
    base, other = pair("llama")
    other.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    layers = named_layers(base)
    assert_equal_deltas(deltas_of(base, str(tmp_path), layers), deltas_from_checkpoints(base, other, layers))


@pytest.mark.parametrize("name", ["llama", "olmoe", "gpt2"])
def test_an_adapter_folder_gives_its_low_rank_deltas(tmp_path: Path, name: str) -> None:
    base = build(name)
    layers = named_layers(base)
    adapted = with_lora(base)
    adapted.save_pretrained(str(tmp_path))
    wanted = deltas_from_adapter(adapted, layers)
    base = unloaded(adapted)
    for parameter in base.parameters():
        parameter.requires_grad_(True)
    before = full_state(base)
    assert_equal_deltas(deltas_of(base, str(tmp_path), layers), wanted)
    assert same_state(before, full_state(base)), "adapters are taken out again and flags put back"


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    with_lora(build("gpt2")).save_pretrained(str(tmp_path))
    base = build("llama")
    before = full_state(base)
    with pytest.raises(BadInput, match="does not fit the base model"):
        deltas_of(base, str(tmp_path), named_layers(base))
    assert same_state(before, full_state(base))


def test_an_adapter_of_other_sizes_is_refused_and_taken_out(tmp_path: Path) -> None:
    with_lora(build("llama")).save_pretrained(str(tmp_path))
    state = load_file(tmp_path / "adapter_model.safetensors")
    cut = {name: value[:, :1].contiguous() if "lora_" in name else value for name, value in state.items()}
    save_file(cut, tmp_path / "adapter_model.safetensors")
    base = build("llama")
    before = full_state(base)
    with pytest.raises(BadInput, match="does not fit the base model"):
        deltas_of(base, str(tmp_path), named_layers(base))
    assert same_state(before, full_state(base))


def test_an_adapter_that_stores_another_embedding_is_refused_and_not_loaded(tmp_path: Path) -> None:
    """peft puts embeddings beside an adapter of the head, and loading would overwrite the base's without a word."""
    with_lora(build("llama", seed=1)).save_pretrained(str(tmp_path), save_embedding_layers=True)
    base = build("llama")
    before = full_state(base)
    with pytest.raises(BadInput, match=r"holds another (lm_head|model\.embed_tokens)\.weight than the base"):
        deltas_of(base, str(tmp_path), named_layers(base))
    assert same_state(before, full_state(base))


def test_an_adapter_that_is_a_pickle_is_refused(tmp_path: Path) -> None:
    with_lora(build("llama")).save_pretrained(str(tmp_path), safe_serialization=True)
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save({}, tmp_path / "adapter_model.bin")
    base = build("llama")
    with pytest.raises(BadInput, match=r"adapter_model\.bin is a pickle"):
        deltas_of(base, str(tmp_path), named_layers(base))


def test_a_weights_file_goes_with_a_network_of_ones_own(tmp_path: Path) -> None:
    base, other = pair("cifar-resnet")
    save_file(other.state_dict(), tmp_path / "tuned.safetensors")
    layers = named_layers(base, "conv")
    deltas = deltas_of(base, str(tmp_path / "tuned.safetensors"), layers)
    assert_equal_deltas(deltas, deltas_from_checkpoints(base, other, layers))
    batch = forward_batch("cifar-resnet")
    with torch.no_grad(), gated(base, deltas, deltas.uniform(1.0)):
        assert torch.allclose(logits(base, batch), logits(other, batch), atol=1e-5)


def test_a_checkpoint_of_other_shapes_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("qwen2").save_pretrained(tmp_path)
    monkeypatch.setattr(tuned, "load_model", lambda *a, **k: pytest.fail("a second model was loaded"))
    base = build("llama")
    with pytest.raises(BadInput, match=r"not two versions of one model.*only in the tuned \(model.*k_proj\.bias"):
        deltas_of(base, str(tmp_path), named_layers(base))


def test_equal_models_are_refused(tmp_path: Path) -> None:
    base = build("olmoe")
    base.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="hold equal tensors: nothing was tuned"):
        deltas_of(base, str(tmp_path), named_layers(base))


def test_a_file_without_a_configuration_says_what_differs(tmp_path: Path) -> None:
    base = build("llama")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    for given in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(BadInput, match=r"1 only in the tuned \(a\)"):
            deltas_of(base, str(given), named_layers(base))


@pytest.mark.parametrize("source", ["someone/no-such-model", "/no/such/folder", "bundled:lama"])
def test_a_tuned_model_that_is_nowhere_is_refused(source: str) -> None:
    base = build("llama")
    with pytest.raises(Exception, match=r"cannot find the tuned model|no folder|unknown bundled model") as caught:
        deltas_of(base, source, named_layers(base))
    assert type(caught.value).__module__ == "keylayers.errors"


def test_a_cached_hub_id_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, other = pair("llama")
    cache = tmp_path / "models--someone--tuned"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    other.save_pretrained(cache / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    layers = named_layers(base)
    assert_equal_deltas(deltas_of(base, "someone/tuned", layers), deltas_from_checkpoints(base, other, layers))


def test_a_quantised_base_goes_with_an_adapter_but_not_with_a_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    import transformers as hf

    from tests.tiny_models import SMALL

    sizes = {**SMALL, "hidden_size": 64, "intermediate_size": 128}
    plain = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes))
    plain.save_pretrained(tmp_path / "base")
    noisy_copy(plain).save_pretrained(tmp_path / "tuned")
    with_lora(plain).save_pretrained(str(tmp_path / "adapter"))
    packed = loading.load_model(str(tmp_path / "base"), four_bit=True, device="cpu").model
    layers = named_layers(packed)
    with pytest.raises(BadInput, match="the base model is quantised"):
        deltas_of(packed, str(tmp_path / "tuned"), layers)
    deltas = deltas_of(packed, str(tmp_path / "adapter"), layers)
    assert deltas.low_rank and all(deltas.changes)
    from peft import PeftModel

    batch = forward_batch("llama")
    with torch.no_grad():
        native = logits(packed, batch)
        with gated(packed, deltas, deltas.uniform(1.0)):
            one = logits(packed, batch)
        with gated(packed, deltas, deltas.uniform(0.0)):
            assert torch.allclose(logits(packed, batch), native, atol=1e-5)
        wanted = logits(PeftModel.from_pretrained(packed, str(tmp_path / "adapter")).eval(), batch)
    # 4-bit kernels compute in bf16 on some processors, where differences of 1e-7 on the way in round to another step.
    assert (one - wanted).abs().max() <= 1e-2 * (wanted - native).abs().max()
    assert isinstance(packed.lm_head, nn.Module) and "model.norm.weight" in parameters_of(packed)


def test_the_adapter_configuration_must_be_readable(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "NOPE"}))
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    base = build("llama")
    with pytest.raises(BadInput, match=r"adapter_config.json is no configuration of an adapter.*NOPE"):
        deltas_of(base, str(tmp_path), named_layers(base))
