"""What no file can say is refused with the reason, and with what can be had instead, at a stated price."""

import peft
import pytest
import transformers as hf
import yaml
from torch import nn

from keylayers.errors import BadInput, UnknownName
from keylayers.exports.target import CannotExpress, ExportSettings, export
from keylayers.layers.layer import total_size
from keylayers.layers.naming import named_layers
from keylayers.scores import Selection
from tests.exports.test_matrix import LORA, MINE, model_of
from tests.exports.test_traps import UP, Twins, named
from tests.tiny_models import SMALL, build


def refused(model: nn.Module, selection: Selection, target: str, **settings: object) -> CannotExpress:
    with pytest.raises(CannotExpress) as problem:
        export(model, selection, target, ExportSettings(**settings))
    return problem.value


@pytest.mark.parametrize("target", MINE)
def test_a_tied_head_is_refused_and_the_rest_offered(target):
    model = model_of("llama-tied")
    layers = named_layers(model, tied=True)
    problem = refused(model, Selection.of(layers, names=["lm_head", UP]), target)
    assert "lm_head shares its weight with model.embed_tokens.weight" in str(problem)
    assert problem.nearest is not None and problem.nearest.names == (UP,)
    head, up = (next(layer.size for layer in layers if layer.name == name) for name in ("lm_head", UP))
    assert f"1 layers, -{head / (head + up):.2%} of the parameters" in str(problem)
    alone = refused(model, Selection.of(layers, names=["lm_head"]), target)
    assert alone.nearest is None and "Nothing near it can be expressed there" in str(alone)


@pytest.mark.parametrize("target", LORA)
def test_for_a_block_its_matrices_are_offered_and_the_norms_are_the_price(target):
    model = model_of("llama")
    blocks = named_layers(model, "block")
    problem = refused(model, Selection.of(blocks, blocks=[1]), target)
    assert problem.nearest is not None
    inside = [layer for layer in named_layers(model) if layer.block == 1]
    assert set(problem.nearest.names) == {layer.name for layer in inside}
    norms = blocks[1].size - total_size(inside)
    assert norms == 2 * 32
    assert f"7 layers, -{norms / blocks[1].size:.2%} of the parameters asked for" in str(problem)


def test_for_a_sublayer_its_matrices_are_the_same_parameters():
    model = model_of("llama")
    attention = named(model, "model.layers.1.self_attn", granularity="sublayer")
    problem = refused(model, attention, "trl")
    assert "4 layers, the same parameters" in str(problem)
    assert export(model, attention, "axolotl-full").matched == tuple(
        f"model.layers.1.self_attn.{key}_proj.weight" for key in "koqv"
    )


@pytest.mark.parametrize("target", sorted(set(LORA) - {"llamafactory"}))
def test_for_one_expert_all_of_its_block_are_offered(target):
    model = model_of("olmoe")
    problem = refused(model, named(model, "model.layers.1.mlp.experts[2]", granularity="expert"), target)
    assert problem.nearest is not None
    assert problem.nearest.names == ("model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj")
    assert "2 layers, +300.00% of the parameters" in str(problem)


def test_routers_are_expressed_as_parameters_where_there_is_a_field_for_these():
    model = model_of("mixtral")
    router = named(model, "model.layers.2.mlp.gate", granularity="router")
    for target in ("peft", "trl", "axolotl", "unsloth"):
        assert export(model, router, target).matched == router.names
    assert export(model, router, "axolotl-full").matched == ("model.layers.2.mlp.gate.weight",)
    problem = refused(model, router, "llamafactory")
    assert problem.nearest is None and "no field for peft's target_parameters" in str(problem)


def test_for_experts_llamafactory_offers_the_linear_modules_beside_them():
    model = model_of("mixtral")
    query, experts = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.experts.down_proj"
    problem = refused(model, named(model, query, experts), "llamafactory")
    assert problem.nearest is not None and problem.nearest.names == (query,)
    assert "the linear modules of (names:" in str(problem)


@pytest.mark.parametrize("target", sorted(set(MINE) - {"peft"}))
def test_tools_that_load_the_model_themselves_need_the_whole_model(target):
    """The body alone has names without `model.`, under which nothing is found once it has a head."""
    body = model_of("llama").model
    selection = Selection.of(named_layers(body), names=[UP.removeprefix("model.")])
    assert "loads a model with its head, where names begin with 'model'" in str(refused(body, selection, target))
    assert "loads models of transformers, and Twins is none" in str(refused(Twins(), named(Twins(), "head"), target))
    assert export(body, selection, "peft").matched == selection.names


def test_several_modalities_are_refused_for_llamafactory_alone():
    """Its table of such models matches parts of names, and freezes towers by default."""
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4, "projection_dim": 16}
    model = hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(**vision), text_config=hf.LlamaConfig(**SMALL))
    )
    selection = named(model, next(layer.name for layer in named_layers(model) if "layers.1.mlp.up_proj" in layer.name))
    assert "by a table of its own" in str(refused(model, selection, "llamafactory"))
    for target in ("peft", "trl", "axolotl", "unsloth"):
        assert export(model, selection, target).matched == selection.names


def test_a_name_that_others_end_with_cannot_be_told_to_llamafactory():
    class Odd(hf.LlamaForCausalLM):
        """With a second projection in the root, whose name all others of its kind end with."""

        def __init__(self, config: hf.LlamaConfig) -> None:
            super().__init__(config)
            self.up_proj = nn.Linear(4, 4)

    model = Odd(hf.LlamaConfig(**SMALL))
    problem = refused(model, named(model, "up_proj", UP), "llamafactory")
    assert "matches endings of names, and other layers' names end with 'up_proj'" in str(problem)
    assert problem.nearest is not None and problem.nearest.names == (UP,)
    assert "unsloth takes no expression for llama" in str(refused(model, named(model, "up_proj"), "unsloth"))
    for target in ("peft", "trl", "axolotl"):
        assert set(export(model, named(model, "up_proj", UP), target).matched) == {"up_proj", UP}


@pytest.mark.parametrize("target", LORA)
def test_a_model_that_carries_adapters_is_refused(target):
    adapted = peft.get_peft_model(build("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(BadInput, match="carries LoRA already, on 3 layers"):
        export(adapted, named(model_of("llama"), UP), target)


def test_an_unknown_target_is_met_with_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown export target 'axolot'; did you mean 'axolotl'"):
        export(model_of("llama"), named(model_of("llama"), UP), "axolot")


def test_a_policy_by_hand_cannot_break_the_file():
    """The comment that names it ends with its line."""
    layers = named_layers(model_of("llama"))
    mask = [layer.name == UP for layer in layers]
    selection = Selection(layers, mask, "by hand\nlora_target_linear: true")  # type: ignore[arg-type]
    for target in MINE:
        assert len(export(model_of("llama"), selection, target).matched) == 1


def test_the_base_model_is_named_as_told():
    for target, key in (
        ("trl", "model_name_or_path"),
        ("axolotl", "base_model"),
        ("llamafactory", "model_name_or_path"),
    ):
        made = export(model_of("llama"), named(model_of("llama"), UP), target, ExportSettings(model="org/name: 'x'"))
        (text,) = made.files.values()
        assert yaml.safe_load(text)[key] == "org/name: 'x'"
