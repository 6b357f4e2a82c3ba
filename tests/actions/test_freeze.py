"""freeze: exactly the selected layers ask for gradients from then on, in transformers' Trainer too."""

import pytest
import torch

from keylayers.actions import freeze
from keylayers.actions.fingerprinting import fingerprints
from keylayers.actions.freezing import forecast
from keylayers.errors import BadSelection
from keylayers.layers import named_layers
from keylayers.scores import Selection, select
from keylayers.training.adapters import LoraSettings, attach_lora
from tests.tiny_models import ALL, build, inputs
from tests.training.small import block, picked


def asking(model: torch.nn.Module) -> set[str]:
    """Names of the parameters that ask for gradients."""
    return {name for name, value in model.named_parameters() if value.requires_grad}


def nothing(model: torch.nn.Module) -> Selection:
    return Selection.of(named_layers(model), names=[], allow_empty=True)


def head(model: torch.nn.Module) -> Selection:
    return Selection.of(named_layers(model, tied=True), names=["lm_head"])


def experts(model: torch.nn.Module) -> Selection:
    return Selection.of(named_layers(model, "expert"), blocks=[0])


@pytest.mark.parametrize("name", ALL)
def test_exactly_the_selected_layers_stay_trainable(name):
    model = build(name)
    granularity = "conv" if name in ("hf-resnet", "cifar-resnet") else "linear"
    selection = select(named_layers(model, granularity), "random:30%:seed=1")
    plan = freeze(model, selection)
    assert asking(model) == {key for layer in selection.chosen for key in layer.parameters}
    trainable = sum(value.numel() for value in model.parameters() if value.requires_grad)
    total = sum(value.numel() for value in model.parameters())
    assert (plan.trainable, plan.total) == (trainable, total)


def test_a_trainer_made_afterwards_changes_the_selected_layers_alone(tmp_path):
    from transformers import Trainer, TrainingArguments

    model = build("llama")
    selection = picked(model, "model.layers.0.mlp.up_proj", "model.layers.2.self_attn.q_proj")
    freeze(model, selection)
    before = fingerprints(model)
    row = {key: value[0] for key, value in inputs("llama").items()}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, learning_rate=1e-2, report_to=[], save_strategy="no", use_cpu=True
    )
    Trainer(model, arguments, train_dataset=[row] * 4).train()
    after = fingerprints(model)
    assert {key for key in before if before[key] != after[key]} == {f"{name}.weight" for name in selection.names}


def test_a_second_call_replaces_the_first():
    model = build("llama")
    freeze(model, block(model, 0))
    plan = freeze(model, block(model, 2))
    assert {name.split(".")[2] for name in asking(model)} == {"2"}
    assert plan == forecast(model, block(model, 2)) and plan.lowest_block == 2


def test_adapters_are_frozen_with_everything_else():
    model = build("llama")
    adapted = attach_lora(model, block(model, 1).chosen, LoraSettings(rank=2), seed=0)
    freeze(adapted, block(build("llama"), 0))
    assert asking(adapted) and not any("lora_" in name for name in asking(adapted))


@pytest.mark.parametrize(
    ("name", "make", "said"),
    [
        ("llama", lambda: nothing(build("llama")), "nothing would train"),
        ("llama", lambda: block(build("gpt2"), 0), "the scores are of another model"),
        ("olmoe", lambda: experts(build("olmoe")), "slice of a fused tensor"),
        ("llama-tied", lambda: head(build("llama-tied")), "is tied"),
    ],
)
def test_a_selection_that_does_not_fit_changes_nothing(name, make, said):
    model = build(name)
    model.model.norm.weight.requires_grad_(False)
    before = asking(model)
    with pytest.raises(BadSelection, match=said):
        freeze(model, make())
    assert asking(model) == before
