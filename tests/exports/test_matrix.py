"""Every target x every architecture x four selections: exported and read back identical, or refused with the reason.

Which of them are refused is written down here, so that a target that refuses more fails as much as one that matches
more. What a file selects is found a second time by `truth`, without the exports, on a real model.
"""

import re
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from keylayers.exports import TARGETS, get
from keylayers.exports.target import CannotExpress, Export, ExportSettings, export
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import parameters_of
from keylayers.scores import LayerScores, Selection, select
from tests.covering import covering
from tests.exports.truth import lora_layers, unfrozen
from tests.tiny_models import ALL, LANGUAGE, VISION, build

KINDS = ("top:30%", "block", "one", "head")
MIXTURES = ("olmoe", "qwen3-moe", "mixtral", "deepseek-v3", "gpt-oss")
TIED = ("llama-tied", "gemma2", "gemma3", "gpt2", "t5", "bert")
"""Models whose output head is their embedding."""
LORA = ("peft", "trl", "axolotl", "llamafactory", "unsloth")
CONVOLUTIONS = ("hf-resnet", "cifar-resnet")
NOT_CAUSAL = ("bert", "t5", *VISION)
MERGEKIT = {
    **dict.fromkeys(NOT_CAUSAL, "knows causal language models"),
    "gpt-neox": "wants attention.bias in every block",
    "deepseek-v3": "drops .* without a word",
}
"""Models it cannot merge, and why."""


@cache
def model_of(name: str) -> nn.Module:
    """Shared by the tests: an export leaves the model as it is, which a test of its own holds it to."""
    return build(name)


def selection_of(name: str, kind: str) -> Selection:
    model = model_of(name)
    layers = named_layers(model, "conv" if name in CONVOLUTIONS else "linear", tied=kind == "head")
    if kind == "block":
        return Selection.of(named_layers(model, "block"), blocks=[1])
    if kind == "one":
        return Selection.of(layers, names=[layers[len(layers) // 2].name])
    if kind == "head":
        if name in CONVOLUTIONS:
            layers = (*layers, *named_layers(model, "linear"))
        outside = [layer.name for layer in layers if layer.block is None]
        return Selection.of(layers, names=[layers[1].name, outside[-1]])
    values = np.random.default_rng(len(name)).random(len(layers))
    return select(LayerScores(layers, values, "random", "linear"), kind)


def refusal(target: str, name: str, kind: str, selection: Selection) -> str | None:
    """The expected reason, as a regular expression; None where the selection must be expressed."""
    if kind == "head" and name in TIED:
        return "shares its weight with"
    if target != "peft" and name == "cifar-resnet":
        return "loads models of transformers, and CifarResNet is none"
    if target == "mergekit":
        return MERGEKIT.get(name)
    if target == "easyedit" and name in NOT_CAUSAL:
        return "edit causal language models"
    if target == "easyedit" and kind in ("top:30%", "head"):  # several kinds of layers, or one outside the blocks
        return "numbers blocks" if kind == "head" else "numbers blocks|edits one kind of layer"
    if target in LORA and target != "peft" and name in ("bert", *VISION):
        return "trains models that generate text"
    if target in LORA and kind == "block":
        return "LoRA adapts single weight matrices"
    if target == "llamafactory" and name in MIXTURES and _by_tensor(name, selection):
        return "no field for peft's target_parameters"
    return None


def _by_tensor(name: str, selection: Selection) -> bool:
    """Whether a fused expert is selected, or a dense layer that peft takes for an older expert."""
    fused = any("experts." in layer for layer in selection.names)
    return fused or any(layer.endswith(("gate_proj", "up_proj", "down_proj")) for layer in selection.names)


MINE = (*LORA, "axolotl-full")
"""Targets whose files `truth` reads a second time; the others' own tests do."""


@pytest.mark.parametrize(("target", "name", "kind"), covering(tuple(TARGETS), sorted(ALL), KINDS))
def test_exported_and_read_back_identical_or_refused_with_the_reason(target, name, kind):
    selection = selection_of(name, kind)
    expected = refusal(target, name, kind, selection)
    if expected is not None:
        with pytest.raises(CannotExpress, match=expected) as refused:
            export(model_of(name), selection, target)
        _check_nearest(target, name, refused.value)
        return
    made = export(model_of(name), selection, target, ExportSettings(remainder="base"))
    wanted = _wanted(selection, target)
    assert set(made.matched) == wanted
    if target in MINE:
        truth = unfrozen if target == "axolotl-full" else lora_layers
        assert truth(build(name), made.files) == wanted


def _wanted(selection: Selection, target: str) -> set[str]:
    if get(target).unit == "layers":
        return set(selection.names)
    return {parameter for layer in selection.chosen for parameter in layer.parameters}


def _check_nearest(target: str, name: str, refused: CannotExpress) -> None:
    """What is proposed instead can be had, and its price is stated."""
    if refused.nearest is None:
        assert "Nothing near it can be expressed" in str(refused)
        return
    assert re.search(r"The nearest it can express is .+ layers, .+parameters", str(refused))
    assert isinstance(export(model_of(name), refused.nearest, target), Export)


def test_how_much_each_target_expresses():
    """Of 4 selections of each of the 19 language models; the rest are whole blocks, tied heads, BERT and experts."""
    expressed = {
        target: sum(
            refusal(target, name, kind, selection_of(name, kind)) is None for name in LANGUAGE for kind in KINDS
        )
        for target in TARGETS
    }
    assert len(LANGUAGE) == 19
    assert expressed["spectrum"] == expressed["axolotl-full"]
    assert expressed["mergekit"] == (19 - 4) * 4 - (len(TIED) - 2)
    assert expressed["easyedit"] == (19 - 2) * 2
    assert expressed["axolotl-full"] == 19 * 4 - len(TIED)
    assert expressed["peft"] == 19 * 3 - len(TIED)
    assert expressed["trl"] == expressed["axolotl"] == expressed["unsloth"] == 18 * 3 - (len(TIED) - 1)
    assert expressed["llamafactory"] >= 18 * 3 - (len(TIED) - 1) - 2 * len(MIXTURES)


def test_the_heads_named_here_as_tied_are_those():
    assert {
        name for name in LANGUAGE if any(layer.tied_to for layer in named_layers(model_of(name), tied=True))
    } == set(TIED)


@pytest.mark.parametrize("target", MINE)
@pytest.mark.parametrize("name", ["olmoe", "gpt2", "phi3"])
def test_an_export_leaves_the_model_and_the_random_numbers_as_they_are(target, name):
    model = build(name).train()
    model.requires_grad_(False)
    model.get_output_embeddings().weight.requires_grad_(True)
    names, flags = list(model.state_dict()), [parameter.requires_grad for parameter in model.parameters()]
    identities = [id(module) for module in model.modules()]
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    for kind in ("top:30%", "one"):
        try:
            export(model, selection_of(name, kind), target)
        except CannotExpress:
            assert target == "llamafactory"
    assert torch.equal(torch.get_rng_state(), state)
    assert list(model.state_dict()) == names and [id(module) for module in model.modules()] == identities
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(module.training for module in model.modules()) and not hasattr(model, "peft_config")
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("target", MINE)
def test_a_model_without_weights_gives_the_same_files(target):
    """An 8B or 70B model is exported from its configuration alone."""
    selection = selection_of("mixtral", "one")
    with torch.device("meta"):
        shape = ALL["mixtral"]()
    assert all(parameter.is_meta for parameter in parameters_of(shape).values())
    assert export(shape, selection, target).files == export(model_of("mixtral"), selection, target).files
