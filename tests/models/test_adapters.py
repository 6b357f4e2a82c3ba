"""Stored adapters: what the gates make of one is what peft makes of it, and no tensor of its file goes unaccounted."""

import json
from pathlib import Path

import pytest
import torch
from peft import IA3Config, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from keylayers.errors import BadInput
from keylayers.layers.deltas import LowRankDelta
from keylayers.layers.gating import gate_gradients, gated
from keylayers.layers.naming import named_layers
from keylayers.layers.tensor_swap import frozen
from keylayers.measures.objective import language_loss
from keylayers.models import deltas_of
from tests.layers.helpers import forward_batch, full_state, logits, same_state, with_lora
from tests.tiny_models import build, inputs

CASES = [
    ("llama", {"trainable_token_indices": [5, 7, 90]}),
    ("llama-tied", {"trainable_token_indices": [5, 7, 90]}),
    ("llama", {"modules_to_save": ["lm_head", "norm"]}),
    ("llama-tied", {"modules_to_save": ["lm_head"]}),
    ("llama-tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    ("llama-tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    ("llama-tied", {"target_modules": ["q_proj", "lm_head"]}),
    ("qwen2", {"bias": "lora_only"}),
    ("llama", {"use_rslora": True, "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}}),
]


def stored(folder: Path, name: str, **settings: object) -> Path:
    """A trained adapter of that tiny model, as peft stores it."""
    adapted = with_lora(build(name), **{"target_modules": ["q_proj", "v_proj"], **settings})
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for key, value in adapted.named_parameters():
            if "modules_to_save" in key or "trainable_tokens_delta" in key or key.endswith("base_layer.bias"):
                value += 0.3 * torch.randn(value.shape, generator=generator)
    adapted.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_gates_of_one_give_the_model_that_peft_gives(tmp_path: Path, name: str, settings: dict) -> None:
    folder, base, batch = stored(tmp_path, name, **settings), build(name), forward_batch(name)
    before, plain = full_state(base), logits(base, batch)
    deltas = deltas_of(base, folder, named_layers(base))
    assert same_state(before, full_state(base)), "nothing of the base is written"
    wanted = logits(PeftModel.from_pretrained(build(name), str(folder)).eval(), batch)
    with torch.no_grad(), gated(base, deltas, deltas.uniform(1.0)):
        assert torch.allclose(logits(base, batch), wanted, atol=1e-5)
    with torch.no_grad(), gated(base, deltas, deltas.uniform(0.0), 0.0):
        assert torch.allclose(logits(base, batch), plain, atol=1e-6)
    assert (wanted - plain).abs().max() > 0.01


def test_experts_keep_their_factors_and_their_gradients(tmp_path: Path) -> None:
    base = build("olmoe")
    with_lora(base).save_pretrained(str(tmp_path))
    base, batch = build("olmoe"), inputs("olmoe")
    layers = named_layers(base, "expert")
    deltas = deltas_of(base, tmp_path, layers)
    assert all(isinstance(delta, LowRankDelta) for change in deltas.changes for delta in change.values())
    dense = deltas_of(base, tmp_path, layers)
    found = []
    for changes in (deltas, as_dense(dense)):
        with frozen(base):
            found.append(gate_gradients(base, changes, 0.5, lambda: language_loss(base, batch)[0].backward()))
        learnt = torch.full((len(layers),), 0.5, requires_grad=True)
        with frozen(base), gated(base, changes, learnt, 0.5):
            language_loss(base, batch)[0].backward()
        assert torch.allclose(learnt.grad.double(), found[-1][0], atol=1e-4)
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)


def as_dense(deltas):
    """The same deltas with every expert's change multiplied out."""
    from dataclasses import replace

    from keylayers.layers.deltas import held_delta

    def dense(changes):
        return {name: held_delta(d.dense()) if "experts" in name else d for name, d in changes.items()}

    return replace(deltas, changes=tuple(map(dense, deltas.changes)), remainder=dense(deltas.remainder))


def changed(folder: Path, **tensors: torch.Tensor | None) -> Path:
    """The adapter with tensors added, or taken out where None."""
    state = load_file(folder / "adapter_model.safetensors")
    for end, tensor in tensors.items():
        name = next((key for key in state if end in key.replace(".", "_")), f"base_model.model.{end}")
        state = {key: value for key, value in state.items() if key != name} | (
            {name: tensor} if tensor is not None else {}
        )
    save_file(state, folder / "adapter_model.safetensors")
    return folder


def test_tensors_without_a_place_and_places_without_a_tensor_are_refused_by_name(tmp_path: Path) -> None:
    base, layers = build("llama"), named_layers(build("llama"))
    folder = changed(stored(tmp_path, "llama"), stray_weight=torch.ones(2))
    with pytest.raises(BadInput, match=r"holds 1 tensors that have no place.*first stray_weight: they would be lost"):
        deltas_of(base, folder, layers)
    folder = changed(stored(tmp_path, "llama"), layers_1_self_attn_q_proj_lora_B=None)
    with pytest.raises(BadInput, match=r"lacks 1 tensors that adapter_config\.json asks for.*1\.self_attn\.q_proj"):
        deltas_of(base, folder, layers)


def test_an_adapter_that_was_not_trained_is_refused(tmp_path: Path) -> None:
    folder = stored(tmp_path, "llama")
    state = load_file(folder / "adapter_model.safetensors")
    save_file({k: v * 0 if "lora_B" in k else v for k, v in state.items()}, folder / "adapter_model.safetensors")
    base = build("llama")
    with pytest.raises(BadInput, match="changes nothing: its products are 0 in all 6 places"):
        deltas_of(base, folder, named_layers(base))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IA3Config(target_modules=["q_proj"], feedforward_modules=[]), "is IA3, and only LORA is read"),
        (
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
            "is PROMPT_TUNING, which adds virtual tokens",
        ),
    ],
    ids=["ia3", "prompt"],
)
def test_other_kinds_of_adapters_are_refused_by_name(tmp_path: Path, config: object, message: str) -> None:
    get_peft_model(build("llama"), config).save_pretrained(str(tmp_path))
    base = build("llama")
    with pytest.raises(BadInput, match=message):
        deltas_of(base, tmp_path, named_layers(base))


def test_settings_that_do_more_than_add_are_refused_before_the_base_is_touched(tmp_path: Path) -> None:
    folder = stored(tmp_path, "llama")
    config = json.loads((folder / "adapter_config.json").read_text())
    base, layers = build("llama"), named_layers(build("llama"))
    for key, value in (("layer_replication", [[0, 2], [1, 3]]), ("use_dora", True), ("init_lora_weights", "pissa")):
        (folder / "adapter_config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(BadInput, match=key):
            deltas_of(base, folder, layers)
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "org/other"}))
    base.config._name_or_path = "org/base"
    assert "says that it was trained on org/other" in deltas_of(base, folder, layers).notes[0]


def test_several_adapters_in_one_folder_have_to_be_named(tmp_path: Path) -> None:
    stored(tmp_path / "one", "llama"), stored(tmp_path / "two", "llama")
    base = build("llama")
    with pytest.raises(BadInput, match=r"holds 2 adapters; name one: .*one, .*two"):
        deltas_of(base, tmp_path, named_layers(base))
