"""A selectively tuned adapter, different kinds of layers in different blocks, in the hands of plain peft: it loads,
merges and reloads with the same outputs, on dense, fused-qkv and fused-expert models."""

from pathlib import Path

import peft
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from keylayers.actions.finetuning import Tuned, TuneSettings, tune
from keylayers.layers import named_layers
from keylayers.layers.adapted import deltas_from_adapter
from keylayers.layers.layer import Layer
from keylayers.models.loading import load_model
from keylayers.scores import Selection
from keylayers.training.adapters import LoraSettings, adapted_names
from keylayers.training.trainer import TrainSettings
from tests.tiny_models import SMALL, build, inputs
from tests.training.small import examples

DENSE, FUSED_QKV = ("llama", "gpt2"), ("phi3", "gpt-neox")
EXPERTS = ("olmoe", "qwen3-moe", "mixtral", "deepseek-v3", "gpt-oss")
SETTINGS = TuneSettings("lora", TrainSettings(steps=4, learning_rate=0.05), LoraSettings(rank=2, alpha=4.0))
CLOSE = 1e-5
"""Largest difference of logits of order 1 (fp32): merging rounds W + BA once, where the adapter adds two products."""


def ragged(model: nn.Module) -> Selection:
    """Every third linear layer of block 0, the last of block 1, two of the last block with its router, and the head."""
    layers: tuple[Layer, ...] = named_layers(model)
    if any(parameter.ndim == 3 for parameter in model.parameters()):
        layers += named_layers(model, "router")[-1:]
    blocks = [[layer for layer in layers if layer.block == number] for number in range(3)]
    chosen = [*blocks[0][::3], blocks[1][-1], *blocks[2][-3:], *(layer for layer in layers if layer.block is None)]
    return Selection.of(layers, names=[layer.name for layer in chosen])


def tuned_and_saved(model: nn.Module, selection: Selection, folder: Path) -> Tuned:
    model.save_pretrained(folder / "base")
    return tune(model, selection, examples(), SETTINGS, folder=folder)


def logits(model: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return model.eval()(**inputs(name)).logits


def in_plain_peft(folder: Path) -> peft.PeftModel:
    base = hf.AutoModelForCausalLM.from_pretrained(folder / "base")
    return peft.PeftModel.from_pretrained(base, folder / "adapter")


@pytest.mark.parametrize("name", [*DENSE, *FUSED_QKV, *EXPERTS])
def test_a_ragged_adapter_loads_merges_and_reloads_with_the_same_outputs(name, tmp_path):
    model = build(name)
    before, selection = logits(model, name), ragged(model)
    wanted = logits(tuned_and_saved(model, selection, tmp_path).model, name)
    assert (wanted - before).abs().max() > 0.1  # or equality would show nothing

    loaded = in_plain_peft(tmp_path)
    assert adapted_names(loaded) == set(selection.names)
    assert all(norm > 0 for norm in deltas_from_adapter(loaded, selection.chosen).norms())
    assert torch.equal(logits(loaded, name), wanted)

    merged = loaded.merge_and_unload()
    assert torch.allclose(logits(merged, name), wanted, atol=CLOSE, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    reloaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(reloaded, name), logits(merged, name))


@pytest.mark.parametrize("name", ["phi3", "qwen3-moe"])
def test_transformers_loads_it_without_peft_code_of_the_user(name, tmp_path):
    model = build(name)
    wanted = logits(tuned_and_saved(model, ragged(model), tmp_path).model, name)
    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(base, name), wanted)


@pytest.mark.filterwarnings("ignore:.*tie")
def test_a_tied_head_loads_but_must_be_untied_before_merging(tmp_path):
    model = build("llama-tied")
    layers = named_layers(model, tied=True)
    selection = Selection.of(layers, names=["lm_head", "model.layers.1.mlp.up_proj"])
    wanted = logits(tuned_and_saved(model, selection, tmp_path).model, "llama-tied")
    assert torch.equal(logits(in_plain_peft(tmp_path), "llama-tied"), wanted)
    merged = in_plain_peft(tmp_path).merge_and_unload()
    assert (logits(merged, "llama-tied") - wanted).abs().max() > 0.1  # peft's trap: the embeddings changed too

    base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")  # the way out, as docs/serving.md has it
    base.config.tie_word_embeddings = False
    base.lm_head.weight = nn.Parameter(base.lm_head.weight.detach().clone())
    untied = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    assert torch.allclose(logits(untied, "llama-tied"), wanted, atol=CLOSE, rtol=0)
    untied.save_pretrained(tmp_path / "untied")
    reloaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "untied")
    assert torch.equal(logits(reloaded, "llama-tied"), logits(untied, "llama-tied"))


def test_an_adapter_trained_on_4_bits_merges_into_the_full_precision_base(tmp_path):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    wide = {**SMALL, "hidden_size": 64, "intermediate_size": 128}  # 4-bit blocks are 64 wide
    hf.LlamaForCausalLM(hf.LlamaConfig(**wide)).save_pretrained(tmp_path / "base")
    model = load_model(str(tmp_path / "base"), four_bit=True).model
    names = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.2.mlp.up_proj"]
    selection = Selection.of(named_layers(model), names=names)
    settings = TuneSettings("qlora", SETTINGS.training, SETTINGS.lora)
    tune(model, selection, examples(), settings, folder=tmp_path)

    base = logits(hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), "llama")
    loaded = in_plain_peft(tmp_path)
    adapted = logits(loaded, "llama")
    assert (adapted - base).abs().max() > 0.01
    assert torch.allclose(logits(loaded.merge_and_unload(), "llama"), adapted, atol=CLOSE, rtol=0)
