"""Selective tuning by every method: it learns, only the selection changes, and the proof notices when that breaks."""

import dataclasses

import pytest
import torch
from torch import nn

from keylayers.actions.finetuning import TuneSettings, check_method, tune
from keylayers.actions.fingerprinting import fingerprints
from keylayers.errors import BadInput, BadSelection, Diverged, KeylayersError, UnknownName
from keylayers.layers import named_layers
from keylayers.measures.loss import example_losses
from keylayers.scores import Selection
from keylayers.training.adapters import LoraSettings, adapted_names
from keylayers.training.trainer import TrainSettings
from tests.tiny_models import build
from tests.training.small import block, examples, same, weights

SHORT = TrainSettings(steps=8, batch_size=6, learning_rate=3e-2, warmup=0.0)
LORA = LoraSettings(rank=4, alpha=8.0)


def loss_of(model: nn.Module) -> float:
    """Nats per token over all training examples."""
    return example_losses(model, examples()).mean


def settings(method: str) -> TuneSettings:
    rate = 5e-3 if method == "full" else SHORT.learning_rate
    return TuneSettings(method, dataclasses.replace(SHORT, learning_rate=rate), LORA)


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "olmoe", "gpt-oss", "llama-tied"])
def test_full_tuning_learns_and_changes_exactly_the_selection(name):
    model = build(name)
    selection, before, start = block(model, 1, 2), fingerprints(model), loss_of(model)
    flags = [value.requires_grad for value in model.parameters()]
    announced = []
    tuned = tune(model, selection, examples(), settings("full"), announce=announced.append)
    after = fingerprints(model)
    changed = {key for key in before if before[key] != after[key]}
    wanted = {key for layer in selection.chosen for key in layer.parameters}
    assert changed <= wanted
    assert {key for key in wanted if not key.endswith("bias")} <= changed
    assert tuned.untouched == len(before) - len(changed)
    assert tuned.model is model and announced == [tuned.forecast]
    assert tuned.forecast.trainable == selection.size
    assert loss_of(model) < start - 0.02
    assert [value.requires_grad for value in model.parameters()] == flags


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "olmoe", "llama-tied"])
def test_lora_learns_on_exactly_the_selection_and_changes_no_weight_of_the_base(name, tmp_path):
    model = build(name)
    selection, before, start = block(model, 1, 2), fingerprints(model), loss_of(model)
    tuned = tune(model, selection, examples(), settings("lora"), folder=tmp_path)
    assert fingerprints(tuned.model) == before and tuned.untouched == len(before)
    assert adapted_names(tuned.model) == set(selection.names)
    assert loss_of(tuned.model) < start - 0.01
    trained = [value for value in tuned.model.parameters() if value.requires_grad]
    assert tuned.forecast.trainable == sum(value.numel() for value in trained)
    stored = adapter_keys(tmp_path / "adapter")
    assert stored and all("lora_" in key and (".1." in key or ".2." in key) for key in stored)


def adapter_keys(folder):
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return list(file.keys())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A two-block Llama on disk, wide enough for 4-bit blocks of 64."""
    import transformers as hf

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = hf.LlamaForCausalLM(
        hf.LlamaConfig(vocab_size=96, max_position_embeddings=64, num_hidden_layers=2, pad_token_id=0, **shape)
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def four_bit(checkpoint):
    from keylayers.models import load_model

    pytest.importorskip("bitsandbytes")
    return load_model(str(checkpoint), four_bit=True).model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_qlora_learns_on_a_4_bit_model_and_changes_no_packed_weight(four_bit, checkpointing):
    start = loss_of(four_bit)  # evaluating first repacks the weights on some CPUs
    selection, before = block(four_bit, 1), fingerprints(four_bit)
    assert any(value.dtype == torch.uint8 for value in four_bit.parameters())
    training = TrainSettings(steps=8, batch_size=6, learning_rate=3e-2, warmup=0.0, checkpointing=checkpointing)
    tuned = tune(four_bit, selection, examples(), TuneSettings("qlora", training, LORA))
    assert fingerprints(tuned.model) == before
    assert adapted_names(tuned.model) == set(selection.names)
    assert loss_of(tuned.model) < start - 0.05
    logical = 2 * 96 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 64 + 2 * 64) + 64
    assert tuned.forecast.total == logical


def test_a_4_bit_model_is_not_tuned_in_full(four_bit):
    with pytest.raises(BadInput, match="a 4-bit model cannot be trained in full; use `method=qlora`"):
        tune(four_bit, block(four_bit, 1), examples(), settings("full"))


def test_qlora_needs_a_4_bit_model_and_an_unknown_method_has_near_names():
    model = build("llama")
    with pytest.raises(BadInput, match=r"four_bit=True"):
        tune(model, block(model, 1), examples(), settings("qlora"))
    with pytest.raises(UnknownName, match="'loraa'; did you mean 'lora'"):
        check_method("loraa")


class Leaky(nn.Module):
    """Changes a tensor of its own whenever it runs, as running statistics do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        if self.training:
            self.count += 1
        return self.inner(x)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_stray_buffer_is_noticed_and_the_model_given_back_without_adapters(method):
    model = build("llama")
    model.model.norm = Leaky(model.model.norm)
    selection = block(model, 1)
    with pytest.raises(KeylayersError, match=r"1 tensors outside the selection, first model\.norm\.count"):
        tune(model, selection, examples(), settings(method))
    assert not adapted_names(model)


def test_a_stray_weight_is_noticed():
    model = build("llama")

    def meddle(step: int, steps: int, loss: float) -> None:
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[0, 0] += 1

    with pytest.raises(KeylayersError, match=r"first model\.layers\.0\.mlp\.down_proj\.weight"):
        tune(model, block(model, 1), examples(), settings("full"), report=meddle)


def test_layers_of_another_model_are_refused_before_anything_trains():
    model, steps = build("gpt2"), []
    before = weights(model)
    foreign = block(build("llama"), 1)
    for method, error in (("full", BadSelection), ("lora", BadInput)):
        with pytest.raises(error):
            tune(model, foreign, examples(), settings(method), report=lambda *report: steps.append(report))
    assert same(before, weights(model)) and not steps


def test_lora_on_a_tied_head_leaves_the_embeddings_alone():
    model = build("llama-tied")
    selection = Selection.of(named_layers(model, tied=True), names=["lm_head"])
    before = fingerprints(model)
    tuned = tune(model, selection, examples(), settings("lora"))
    assert adapted_names(tuned.model) == {"lm_head"} and fingerprints(tuned.model) == before


def test_a_run_that_diverges_stores_no_adapter(tmp_path):
    model = build("llama")

    def poison(step: int, steps: int, loss: float) -> None:
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))

    with pytest.raises(Diverged, match="step 2 of 8"):
        tune(model, block(model, 1), examples(), settings("lora"), folder=tmp_path, report=poison)
    assert not (tmp_path / "adapter").exists()
    assert not adapted_names(model)


def test_the_same_model_can_be_tuned_again_after_its_adapters_are_taken_out():
    from keylayers.layers.adapted import unloaded

    model = build("llama")
    first = tune(model, block(model, 1), examples(), settings("lora"))
    again = tune(unloaded(first.model), block(model, 1), examples(), settings("lora"))
    assert again.log.losses == first.log.losses
