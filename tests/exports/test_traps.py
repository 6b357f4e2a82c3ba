"""What other tools do in silence with a selection, each shown first, then shown not to happen to an export."""

import json
import re
from dataclasses import replace

import peft
import pytest
import torch
import yaml
from torch import nn

from keylayers.errors import BadSelection
from keylayers.exports import get
from keylayers.exports.target import Adapter, CannotExpress, ExportSettings, export
from keylayers.layers.naming import named_layers
from keylayers.scores import Selection
from keylayers.training.adapters import adapted_names
from tests.exports.test_matrix import MINE, model_of
from tests.tiny_models import build

UP = "model.layers.1.mlp.up_proj"
QUERY = "model.layers.1.self_attn.q_proj"


def named(model: nn.Module, *names: str, granularity: str = "linear") -> Selection:
    return Selection.of(named_layers(model, granularity), names=names)


def deep(blocks: int) -> nn.Module:
    """A Llama with enough blocks that their numbers begin and end each other's."""
    import transformers as hf

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=16, num_hidden_layers=blocks, **shape))


def edited(target: str, model: nn.Module, selection: Selection, **changes: object) -> set[str]:
    """What the tool selects when fields of our file are changed by hand; None takes a field out."""
    files = export(model, selection, target).files
    ((name, text),) = files.items()
    values = {**(json.loads(text) if name.endswith("json") else yaml.safe_load(text)), **changes}
    kept = {key: value for key, value in values.items() if value is not None}
    dump = json.dumps if name.endswith("json") else yaml.safe_dump
    return get(target).read_back(model, {name: dump(kept)})


@pytest.mark.parametrize("target", MINE)
def test_an_empty_selection_is_refused_since_empty_lists_mean_all(target):
    adapted = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj"], layers_to_transform=[]))
    assert len(adapted_names(adapted)) == 3
    nothing = Selection.of(named_layers(model_of("llama")), names=[], allow_empty=True)
    with pytest.raises(BadSelection, match="other tools read an empty list as all layers"):
        export(model_of("llama"), nothing, target)


def test_axolotl_freezes_nothing_for_an_empty_list():
    everything = {name for name, _ in model_of("llama").named_parameters()}
    assert edited("axolotl-full", model_of("llama"), named(model_of("llama"), UP), unfrozen_parameters=[]) == everything


@pytest.mark.parametrize("target", MINE)
def test_names_a_model_lacks_are_passed_over_by_peft_and_refused_here(target):
    adapted = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj", "no_such_proj"]))
    assert len(adapted_names(adapted)) == 3
    wide, narrow = deep(4), deep(3)
    with pytest.raises(
        BadSelection, match=r"1 of the 2 selected layers are not in LlamaForCausalLM, first model\.layers\.3"
    ):
        export(narrow, named(wide, UP, "model.layers.3.mlp.up_proj"), target)


@pytest.mark.parametrize("name", ["llama", "mixtral", "olmoe"])
def test_trl_takes_a_list_of_one_for_an_expression(name):
    """A lone ending matches nothing, and in some mixtures a lone full name matches in every block."""
    model, selection = model_of(name), named(model_of(name), QUERY)
    with pytest.raises(CannotExpress, match="Target modules q_proj not found"):
        edited("trl", model, selection, lora_target_modules=["q_proj"])
    alone = edited("trl", model, selection, lora_target_modules=[QUERY])
    assert alone == ({QUERY} if name == "llama" else {f"model.layers.{block}.self_attn.q_proj" for block in range(3)})
    made = export(model, selection, "trl")
    assert yaml.safe_load(made.files["trl.yaml"])["lora_target_modules"] == [QUERY, QUERY]
    assert made.matched == (QUERY,)


@pytest.mark.parametrize("target", ["peft", "trl", "axolotl", "unsloth"])
def test_experts_alone_bring_no_attention_with_them(target):
    """Without target_modules peft takes its defaults for the architecture, where it has any."""
    adapted = peft.get_peft_model(build("llama"), peft.LoraConfig(target_parameters=[f"{UP}.weight"]))
    assert {UP, "model.layers.0.self_attn.q_proj"} <= adapted_names(adapted)
    name = "model.layers.1.mlp.experts.down_proj"
    assert export(model_of("mixtral"), named(model_of("mixtral"), name), target).matched == (name,)


def test_a_container_is_no_layer_to_peft():
    model = model_of("llama")
    with pytest.raises(CannotExpress, match="Target module LlamaDecoderLayer"):
        edited("peft", model, named(model, UP), target_modules=["model.layers.1"])


def test_all_linear_takes_the_routers_and_an_export_does_not():
    model = model_of("olmoe")
    routers = {layer.name for layer in named_layers(model, "router")}
    everything = Selection.of(named_layers(model), blocks=range(3), allow_total=True)
    assert routers <= edited("peft", model, everything, target_modules="all-linear", target_parameters=None)
    assert not routers & set(export(model, everything, "peft").matched)


def test_axolotl_adds_every_linear_module_for_lora_target_linear():
    model = model_of("llama")
    assert len(edited("axolotl", model, named(model, UP), lora_target_linear=True)) == 21


def test_peft_leaves_block_numbers_out_of_account_for_experts():
    """layers_to_transform chooses among modules alone, so the experts of every block are adapted."""
    config = peft.LoraConfig(
        target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"], layers_to_transform=[1]
    )
    found = adapted_names(peft.get_peft_model(build("olmoe"), config))
    assert found == {QUERY, *(f"model.layers.{block}.mlp.experts.down_proj" for block in range(3))}
    both = named(model_of("olmoe"), QUERY, "model.layers.1.mlp.experts.down_proj")
    assert set(export(model_of("olmoe"), both, "peft").matched) == set(both.names)


def test_an_experts_number_is_no_blocks():
    """Experts 1 and 2 of block 0, chosen as rows, are neither blocks 1 and 2 nor experts of these."""
    model = model_of("olmoe")
    chosen = named(model, "model.layers.0.mlp.experts[1]", "model.layers.0.mlp.experts[2]", granularity="expert")
    matched = set(export(model, chosen, "axolotl-full").matched)
    assert matched == {
        f"model.layers.0.mlp.experts.{key}[{row}]" for key in ("gate_up_proj", "down_proj") for row in (1, 2)
    }


@pytest.mark.parametrize("target", MINE)
def test_block_1_is_neither_block_11_nor_block_10(target):
    model = deep(12)
    made = export(model, named(model, UP), target)
    assert made.matched == ((f"{UP}.weight",) if made.unit == "parameters" else (UP,))
    if target == "axolotl-full":
        loose = edited(target, model, named(model, UP), unfrozen_parameters=["model.layers.1"])
        assert {int(name.split(".")[2]) for name in loose} == {1, 10, 11}


@pytest.mark.parametrize(
    "pattern",
    ["^model.layers.1.*$", "^model.*.1.mlp.up_proj.weight$", re.escape(f"{UP}.weight"), f"^{re.escape(UP)}.weight$"],
)
def test_axolotl_escapes_dots_so_these_patterns_match_nothing(pattern):
    """`.*` comes to mean any number of dots, and an escaped dot a backslash and a dot."""
    model = model_of("llama")
    assert re.match(pattern, f"{UP}.weight")
    assert edited("axolotl-full", model, named(model, UP), unfrozen_parameters=[pattern]) == set()
    assert export(model, named(model, UP), "axolotl-full").matched == (f"{UP}.weight",)


def test_the_head_escapes_a_choice_of_blocks_and_is_there_only_if_asked_for():
    config = peft.LoraConfig(target_modules=["q_proj", "lm_head"], layers_to_transform=[1])
    assert "lm_head" in adapted_names(peft.get_peft_model(build("llama"), config))
    for target in MINE:
        assert not any(
            "lm_head" in name for name in export(model_of("llama"), named(model_of("llama"), UP), target).matched
        )


def test_llamafactory_takes_a_missing_target_for_all_of_them():
    model = model_of("llama")
    found = edited("llamafactory", model, named(model, UP), lora_target=None)
    assert found == {layer.name for layer in named_layers(model)} - {"lm_head"}
    assert len(edited("llamafactory", model, named(model, UP), lora_target="up_proj, down_proj")) == 6


def test_unsloth_reads_two_spellings_of_the_same_arguments_differently():
    """Lists of bare names bring the experts of all blocks; one way takes strings apart, the other rewrites lists."""
    llama, olmoe = model_of("llama"), model_of("olmoe")
    with pytest.raises(CannotExpress, match="not found in the base model"):
        edited("unsloth", llama, named(llama, UP), target_modules="model.*up_proj")
    with pytest.raises(CannotExpress, match=r"peft refuses these settings: .*finetune_vision_layers"):
        edited("unsloth", llama, named(llama, UP), finetune_vision_layers=True)
    with pytest.raises(CannotExpress, match=r"rewrites target_modules .* while finetune_vision_layers is off"):
        edited("unsloth", olmoe, named(olmoe, QUERY), finetune_vision_layers=None)
    with pytest.raises(CannotExpress, match="adds the experts of every block by itself"):
        edited("unsloth", olmoe, named(olmoe, QUERY), target_parameters=None)


def test_unsloth_drops_the_pattern_of_blocks():
    llama = model_of("llama")
    fields = {"target_modules": ["up_proj"], "layers_to_transform": [1]}
    assert edited("unsloth", llama, named(llama, UP), **fields, layers_pattern="no_such_list") == {UP}


class Twins(nn.Module):
    """One module's name is the ending of another's."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.other = nn.ModuleDict({"head": nn.Linear(4, 4), "more": nn.Linear(4, 4)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other["more"](self.other["head"](self.head(x)))


def test_a_name_that_others_end_with_is_written_as_an_expression():
    listed = peft.get_peft_model(Twins(), peft.LoraConfig(target_modules=["head"]))
    assert adapted_names(listed) == {"head", "other.head"}
    for names in (("head",), ("other.head",), ("head", "other.more")):
        assert export(Twins(), named(Twins(), *names), "peft").matched == names
    convolution = named(model_of("cifar-resnet"), "conv1", granularity="conv")
    assert export(model_of("cifar-resnet"), convolution, "peft").matched == ("conv1",)


@pytest.mark.parametrize("target", MINE)
@pytest.mark.parametrize("fault", ["one fewer", "one more", "another block"])
def test_a_rendering_that_says_something_else_is_never_handed_out(target, fault, monkeypatch):
    """The check does not lean on the renderer being right."""
    model = model_of("llama")
    asked = named(model, UP, QUERY)
    said = {
        "one fewer": named(model, UP),
        "one more": named(model, UP, QUERY, "lm_head"),
        "another block": named(model, UP, QUERY.replace("1", "2")),
    }[fault]
    real = get(target)
    broken = replace(real, render=lambda model, selection, settings: real.render(model, said, settings))
    monkeypatch.setattr("keylayers.exports.target.get", lambda name: broken)
    with pytest.raises(CannotExpress, match=f"{target} would select other (layers|parameters) than asked: 1"):
        export(model, asked, target)


@pytest.mark.parametrize("target", ["peft", "trl", "axolotl", "llamafactory", "unsloth"])
def test_a_rendering_with_another_rank_or_scale_is_never_handed_out(target, monkeypatch):
    model, real = model_of("llama"), get(target)
    for wrong in (ExportSettings(rank=8), ExportSettings(alpha=8.0)):
        broken = replace(
            real, render=lambda model, selection, settings, wrong=wrong: real.render(model, selection, wrong)
        )
        monkeypatch.setattr("keylayers.exports.target.get", lambda name, broken=broken: broken)
        with pytest.raises(CannotExpress, match=r"would give model\.layers\.1\.mlp\.up_proj rank .+ as asked"):
            export(model, named(model, UP), target)


def test_what_an_export_says_of_itself():
    made = export(model_of("llama"), named(model_of("llama"), UP, QUERY), "peft")
    assert str(made).startswith("peft: 2/22 layers, 1/3 blocks, ")
    found = get("peft").adapters(model_of("llama"), made.files)
    assert found == {UP: Adapter(16, 2.0), QUERY: Adapter(16, 2.0)}
