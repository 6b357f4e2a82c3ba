"""LoRA on exactly the asked layers: peft's silent matches, one test each, and what is left when it fails."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from keylayers.errors import BadInput, BadSelection
from keylayers.layers import named_layers
from keylayers.training.adapters import (
    LoraSettings,
    adapted_names,
    attach_lora,
    lora_config,
    restored,
    save_adapter,
)
from tests.tiny_models import ALL, build, inputs
from tests.training.small import same, weights

RANK_TWO = LoraSettings(rank=2, alpha=4.0)


def layers_of(model, *names):
    return [layer for layer in named_layers(model) if layer.name in names]


def deep(blocks: int) -> nn.Module:
    """A Llama with enough blocks that their numbers are endings of each other's."""
    import transformers as hf

    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    return hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=16, num_hidden_layers=blocks, **shape))


def test_peft_takes_an_empty_list_of_blocks_for_all_of_them_and_we_refuse_it():
    model = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj"], layers_to_transform=[]))
    assert len(adapted_names(model)) == 3
    with pytest.raises(BadSelection, match="empty list would make peft adapt all"):
        lora_config(build("llama"), [], RANK_TWO)


def test_peft_passes_over_unknown_names_and_we_refuse_them():
    config = peft.LoraConfig(target_modules=["q_proj", "no_such_proj"])
    assert len(adapted_names(peft.get_peft_model(build("llama"), config))) == 3
    wide, narrow = deep(4), deep(3)
    before = weights(narrow)
    with pytest.raises(BadSelection, match=r"1 missing \['model\.layers\.3\.mlp\.up_proj'\]"):
        attach_lora(narrow, layers_of(wide, "model.layers.1.mlp.up_proj", "model.layers.3.mlp.up_proj"), RANK_TWO, 0)
    assert same(before, weights(narrow)) and not adapted_names(narrow)


def test_a_model_without_any_of_the_layers_is_refused_and_left_alone():
    model = build("gpt2")
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with pytest.raises(BadInput, match="peft cannot adapt this selection"):
        attach_lora(model, layers_of(build("llama"), "model.layers.1.mlp.up_proj"), RANK_TWO, 0)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not hasattr(model, "peft_config")


def test_one_layer_alone_is_a_list_and_no_pattern():
    """TRL turns a list of one name into a regular expression; ours stays a list of one full name."""
    model = build("llama")
    config = lora_config(model, layers_of(model, "model.layers.1.mlp.up_proj"), RANK_TWO)
    assert config.target_modules == {"model.layers.1.mlp.up_proj"}
    adapted = attach_lora(model, layers_of(model, "model.layers.1.mlp.up_proj"), RANK_TWO, 0)
    assert adapted_names(adapted) == {"model.layers.1.mlp.up_proj"}


def test_the_head_is_adapted_only_if_it_is_asked_for():
    """For peft `lm_head` escapes `layers_to_transform`; a full name has nothing to escape."""
    config = peft.LoraConfig(target_modules=["q_proj", "lm_head"], layers_to_transform=[1])
    assert "lm_head" in adapted_names(peft.get_peft_model(build("llama"), config))
    model = build("llama")
    assert adapted_names(attach_lora(model, layers_of(model, "model.layers.1.self_attn.q_proj"), RANK_TWO, 0)) == {
        "model.layers.1.self_attn.q_proj"
    }
    model = build("llama")
    assert adapted_names(attach_lora(model, layers_of(model, "lm_head"), RANK_TWO, 0)) == {"lm_head"}


def test_block_1_is_not_block_11():
    model = deep(12)
    adapted = attach_lora(model, layers_of(model, "model.layers.1.mlp.up_proj"), RANK_TWO, 0)
    assert adapted_names(adapted) == {"model.layers.1.mlp.up_proj"}


def test_a_name_that_is_the_ending_of_another_is_told_apart():
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 4)
            self.other = nn.ModuleDict({"head": nn.Linear(4, 4), "more": nn.Linear(4, 4)})

        def forward(self, x):
            return self.other["more"](self.other["head"](self.head(x)))

    listed = peft.get_peft_model(Twins(), peft.LoraConfig(target_modules=["head"]))
    assert adapted_names(listed) == {"head", "other.head"}
    for name in ("head", "other.head"):
        model = Twins()
        assert adapted_names(attach_lora(model, layers_of(model, name), RANK_TWO, 0)) == {name}


def test_many_layers_are_still_exactly_those():
    """From twenty names on peft replaces a list by shorter endings."""
    model = deep(12)
    wanted = [layer for layer in named_layers(model) if layer.block is not None and layer.block % 3 == 1]
    assert len(wanted) > 20
    assert adapted_names(attach_lora(model, wanted, RANK_TWO, 0)) == {layer.name for layer in wanted}


@pytest.mark.parametrize("name", ["olmoe", "qwen3-moe", "mixtral", "gpt-oss", "deepseek-v3"])
def test_fused_experts_are_adapted_as_parameters_of_their_own_block_and_no_router_is(name):
    """peft's `all-linear` adapts routers, and its block patterns mistake an expert's number for a block's."""
    model = build(name)
    wanted = [layer for layer in named_layers(model) if layer.block == 1]
    assert any("experts" in layer.name for layer in wanted)
    adapted = attach_lora(model, wanted, RANK_TWO, 0)
    assert adapted_names(adapted) == {layer.name for layer in wanted}
    routers = {layer.name for layer in named_layers(build(name), "router")}
    assert routers and not routers & adapted_names(adapted)
    trained = [key for key, value in adapted.named_parameters() if value.requires_grad]
    assert trained and all("lora_" in key and ".1." in key for key in trained)
    assert torch.isfinite(adapted(**inputs(name)).loss)


def test_all_linear_would_adapt_the_routers():
    adapted = peft.get_peft_model(build("olmoe"), peft.LoraConfig(target_modules="all-linear"))
    assert {layer.name for layer in named_layers(build("olmoe"), "router")} <= adapted_names(adapted)
    assert not any(layer.name.endswith(".gate") for layer in named_layers(build("olmoe")))


def test_experts_alone_bring_no_attention_with_them():
    """Without target_modules peft adds its own defaults for the architecture."""
    model = build("mixtral")
    wanted = [layer for layer in named_layers(model) if layer.name == "model.layers.2.mlp.experts.down_proj"]
    assert adapted_names(attach_lora(model, wanted, RANK_TWO, 0)) == {"model.layers.2.mlp.experts.down_proj"}


@pytest.mark.parametrize("granularity", ["block", "expert"])
def test_what_has_no_weight_matrix_of_its_own_is_refused_with_the_remedy(granularity):
    model = build("olmoe")
    with pytest.raises(BadSelection, match="select layers of granularity linear, or train in full"):
        lora_config(model, named_layers(model, granularity)[:1], RANK_TWO)


@pytest.mark.parametrize("name", ["olmoe", "mixtral"])
def test_routers_are_adapted_where_they_are_asked_for(name):
    model = build(name)
    wanted = [*named_layers(model)[:2], *named_layers(model, "router")[1:]]
    assert adapted_names(attach_lora(model, wanted, RANK_TWO, 0)) == {layer.name for layer in wanted}


def test_a_dense_layer_of_a_mixture_is_not_taken_for_the_experts_of_every_block():
    """peft reads `gate_proj` as an older transformers' expert and would adapt all fused experts in its place."""
    model = build("deepseek-v3")
    dense = [layer for layer in named_layers(model) if layer.name.endswith((".mlp.gate_proj", ".mlp.up_proj"))]
    assert [layer.block for layer in dense] == [0, 0]
    names = [layer.name for layer in dense]
    config = peft.LoraConfig(target_modules=names)
    assert any("experts" in name for name in adapted_names(peft.get_peft_model(build("deepseek-v3"), config)))
    assert adapted_names(attach_lora(model, dense, RANK_TWO, 0)) == set(names)


@pytest.mark.parametrize("name", ["deepseek-v3", "olmoe", "mixtral", "gpt2", "phi3"])
def test_a_stored_adapter_comes_back_as_it_was(name, tmp_path):
    from keylayers.layers.adapted import deltas_from_adapter
    from keylayers.models import deltas_of

    model = build(name)
    layers = named_layers(model)
    adapted = attach_lora(model, layers, RANK_TWO, 0)
    with torch.no_grad():
        for key, value in adapted.named_parameters():
            if "lora_B" in key:
                value.normal_()
    save_adapter(adapted, tmp_path)
    expected = deltas_from_adapter(adapted, layers)
    stored = deltas_of(build(name), tmp_path, layers)
    for ours, theirs in zip(expected.changes, stored.changes, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key].dense(), theirs[key].dense()) for key in ours)


def test_the_seed_alone_decides_the_adapters():
    """get_peft_model draws from the global generator, whatever was drawn before."""

    def start(seed: int, drawn: int) -> dict:
        model = build("llama")
        torch.rand(drawn)
        return weights(attach_lora(model, named_layers(model), RANK_TWO, seed))

    assert same(start(3, 0), start(3, 17))
    assert not same(start(3, 0), start(4, 0))


def test_fresh_adapters_change_nothing_and_only_they_train():
    for name in ("llama", "gpt2", "phi3", "olmoe"):
        model = build(name)
        with torch.no_grad():
            before = model(**inputs(name)).logits
            adapted = attach_lora(model, named_layers(model), RANK_TWO, 0)
            assert torch.allclose(adapted(**inputs(name)).logits, before, atol=1e-6)
        assert all("lora_" in key for key, value in adapted.named_parameters() if value.requires_grad)


def test_a_model_with_adapters_is_refused():
    model = build("llama")
    adapted = attach_lora(model, layers_of(model, "lm_head"), RANK_TWO, 0)
    with pytest.raises(BadInput, match=r"carries LoRA already, on 1 layers \(lm_head"):
        attach_lora(adapted, named_layers(model), RANK_TWO, 0)


def test_saving_an_adapted_head_stores_no_base_weights(tmp_path):
    model = build("llama")
    save_adapter(attach_lora(model, layers_of(model, "lm_head"), RANK_TWO, 0), tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert set(stored) == {"base_model.model.lm_head.lora_A.weight", "base_model.model.lm_head.lora_B.weight"}


def test_restored_puts_back_modules_flags_and_modes():
    model = build("llama")
    model.model.norm.weight.requires_grad_(False)
    before, flags = weights(model), [parameter.requires_grad for parameter in model.parameters()]
    for attempt in range(2):
        with restored(model):
            adapted = attach_lora(model, named_layers(model), RANK_TWO, seed=attempt)
            adapted.train()
        assert same(before, weights(model)) and not adapted_names(model) and not model.training
        assert [parameter.requires_grad for parameter in model.parameters()] == flags


@pytest.mark.parametrize("change", [{"rank": 0}, {"dropout": 1.0}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(BadInput, match="expected"):
        LoraSettings(**change)


@pytest.mark.parametrize("name", sorted(ALL))
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_layer_states_what_lora_of_rank_1_adds_to_it(name, every):
    """By peft's own count, each layer for itself; layers of one kind and size that state the same stand for each other,
    unless every layer is asked for."""
    layers = named_layers(build(name), "conv" if name in ("hf-resnet", "cifar-resnet") else "linear")
    unlike = {(layer.kind, layer.size, layer.lora_size): layer for layer in layers}
    for layer in layers if every else unlike.values():
        adapted = attach_lora(build(name), [layer], LoraSettings(rank=1), seed=0)
        added = sum(value.numel() for key, value in adapted.named_parameters() if "lora_" in key)
        assert layer.lora_size == added, layer.name
