"""mergekit's YAML, read by its rule: which model each tensor comes from, and what cannot be said.

The rule restated here agreed, every tensor equal, with mergekit 0.1.5 itself, run on base and tuned checkpoints of the
causal tiny models it can merge, in fp32 and bf16 (75 merges each: a random 30 %, one layer, a whole block, the head,
sublayers, routers). The refusals below are of what it then got wrong: GPT-NeoX, BERT and T5 stop for want of a tensor,
ViT comes out mixed, DeepSeek-V3 loses its experts without a word.
"""

from dataclasses import replace

import pytest
import transformers as hf
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from keylayers.exports import mergekit
from keylayers.exports.stored import stored_parameters
from keylayers.exports.target import CannotExpress, ExportSettings, export
from keylayers.layers import Layer, named_layers, parameters_of
from keylayers.scores import Selection
from tests.tiny_models import CAUSAL, build

GPT_OSS = build("gpt-oss")
SETTINGS = ExportSettings(model="org/base", tuned="org/tuned", remainder="base")
REFUSED = {"gpt-neox": "attention.bias", "deepseek-v3": "drops model.layers.1.mlp.experts.gate_up_proj without a word"}


def picked(model, *names, granularity="linear", **options):
    return Selection.of(named_layers(model, granularity, **options), names=names)


def shares(model, text: str) -> set[str]:
    return mergekit.read_back(model, {mergekit.FILE: text})


def document(*filters, default=0.0) -> str:
    """A merge with these (filter, weight of tuned); base gets the rest."""
    tuned = [{"filter": part, "value": weight} for part, weight in filters] + [{"value": default}]
    base = [{**one, "value": 1 - one["value"]} for one in tuned]
    models = [
        {"model": "org/tuned", "parameters": {"weight": tuned}},
        {"model": "org/base", "parameters": {"weight": base}},
    ]
    return yaml.safe_dump({"merge_method": "linear", "base_model": "org/base", "models": models})


@pytest.mark.parametrize("name", sorted(CAUSAL.keys() - REFUSED.keys()))
def test_every_parameter_comes_from_the_model_asked_for(name):
    model = build(name)
    layers = named_layers(model)
    for selection in (
        Selection.of(layers, names=[layer.name for layer in layers[1::3]]),
        Selection.of(named_layers(model, "block"), blocks=[1]),
    ):
        found = export(model, selection, "mergekit", SETTINGS)
        chosen = {name for layer in selection.chosen for name in layer.parameters}
        assert set(found.matched) == chosen
        whole = export(model, selection, "mergekit", replace(SETTINGS, remainder="tuned"))
        scored = {name for layer in selection.layers for name in layer.parameters}
        assert set(whole.matched) == chosen | (stored_parameters(model) - scored)
        assert "that no scored layer holds come from the tuned model" in str(whole)


@settings(max_examples=25)
@given(st.data())
def test_any_set_of_tensors_is_told_apart_even_where_names_are_parts_of_others(data):
    """gpt-oss: `q_proj.weight`, `q_proj.bias`; `down_proj`, `down_proj_bias`; every tensor a layer of its own."""
    layers = [Layer(name, None, "tensor", (name,), value.numel()) for name, value in parameters_of(GPT_OSS).items()]
    names = data.draw(st.sets(st.sampled_from([layer.name for layer in layers]), min_size=1))
    found = export(GPT_OSS, Selection.of(layers, names=names, allow_total=True), "mergekit", SETTINGS)
    assert set(found.matched) == names


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_mergekit_gets_wrong_are_refused(name):
    model = build(name)
    with pytest.raises(CannotExpress, match=REFUSED[name]):
        export(model, Selection.of(named_layers(model), blocks=[1]), "mergekit", SETTINGS)


@pytest.mark.parametrize("name", ["bert", "t5", "vit"])
def test_only_causal_language_models_are_merged(name):
    model = build(name)
    with pytest.raises(CannotExpress, match="knows causal language models"):
        export(model, Selection.of(named_layers(model), blocks=[1]), "mergekit", SETTINGS)


def test_a_filter_is_any_part_of_a_name_so_a_short_one_takes_more_than_it_says():
    model = build("qwen3-moe")
    assert {name.split("model.layers.1.")[-1] for name in shares(model, document(("layers.1.mlp.gate", 1.0)))} == {
        "mlp.gate.weight"
    }
    dense = build("llama")
    assert shares(dense, document(("layers.1.mlp.gate", 1.0))) == {"model.layers.1.mlp.gate_proj.weight"}
    assert len(shares(dense, document(("self_attn.q", 1.0)))) == 3  # every block's


def test_the_router_is_not_taken_for_the_fused_gate_beside_it():
    model = build("qwen3-moe")
    router = export(model, picked(model, "model.layers.1.mlp.gate", granularity="router"), "mergekit", SETTINGS)
    assert router.matched == ("model.layers.1.mlp.gate.weight",)
    experts = export(model, picked(model, "model.layers.1.mlp.experts.gate_up_proj"), "mergekit", SETTINGS)
    assert experts.matched == ("model.layers.1.mlp.experts.gate_up_proj",)


def test_a_name_that_is_part_of_another_is_tried_after_it():
    """`gate_up_proj` is part of `gate_up_proj_bias`: the weight alone, the bias alone, and both."""
    model = build("gpt-oss")
    place = "model.layers.1.mlp.experts.gate_up_proj"
    layers = named_layers(model)
    both = next(layer for layer in layers if layer.name == place)
    assert both.parameters == (place, f"{place}_bias")
    for parameters in ([place], [f"{place}_bias"], both.parameters):
        alone = [replace(layer, parameters=tuple(parameters)) if layer.name == place else layer for layer in layers]
        found = export(model, Selection.of(alone, names=[place]), "mergekit", SETTINGS)
        assert set(found.matched) == set(parameters)


def test_block_1_is_not_block_11():
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=16, num_hidden_layers=12, **shape))
    assert len(shares(model, document(("layers.1", 1.0)))) == 3 * 9  # the trap: 1, 10 and 11
    found = export(model, Selection.of(named_layers(model, "block"), blocks=[1]), "mergekit", SETTINGS)
    assert all(name.startswith("model.layers.1.") for name in found.matched) and len(found.matched) == 9


def test_weights_are_interpolated_over_depth_and_mixtures_refused():
    model = build("llama")
    config = yaml.safe_load(document())
    tuned, base = (entry["parameters"] for entry in config["models"])
    tuned["weight"], base["weight"] = [0, 0, 1], [1, 1, 0]
    assert shares(model, yaml.safe_dump(config)) == {n for n in parameters_of(model) if n.startswith("model.layers.2.")}
    tuned["weight"], base["weight"] = [0, 1], [1, 0]
    with pytest.raises(CannotExpress, match=r"model\.layers\.1\S+ would be a mixture: 0.5 of tuned, 0.5 of base"):
        shares(model, yaml.safe_dump(config))
    tuned["weight"], base["weight"] = [{"filter": "nowhere", "value": 1}], 1
    with pytest.raises(CannotExpress, match=r"mergekit would stop at .* no weight for org/tuned"):
        shares(model, yaml.safe_dump(config))
    config["parameters"] = {"weight": 0}  # the merge's own setting counts where a model's says nothing
    assert shares(model, yaml.safe_dump(config)) == set()


def test_other_methods_and_equal_models_are_refused():
    model = build("llama")
    with pytest.raises(CannotExpress, match="'slerp' does not copy tensors exactly"):
        shares(model, document().replace("linear", "slerp"))
    with pytest.raises(CannotExpress, match="both called 'MODEL'"):
        export(model, picked(model, "lm_head"), "mergekit", ExportSettings(tuned="MODEL"))


def test_a_tied_head_is_left_out_and_single_experts_become_their_tensor():
    tied = build("llama-tied")
    asked = picked(tied, "lm_head", "model.layers.0.mlp.up_proj", tied=True)
    with pytest.raises(CannotExpress, match="lm_head shares its weight") as caught:
        export(tied, asked, "mergekit", SETTINGS)
    assert caught.value.nearest.names == ("model.layers.0.mlp.up_proj",)
    moe = build("mixtral")
    experts = picked(moe, *(f"model.layers.1.mlp.experts[{i}]" for i in (0, 1, 3)), granularity="expert")
    with pytest.raises(CannotExpress, match="is a slice of one") as caught:
        export(moe, experts, "mergekit", SETTINGS)
    nearest = caught.value.nearest
    assert nearest.names == ("model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj")
    assert len(export(moe, nearest, "mergekit", SETTINGS).matched) == 2
