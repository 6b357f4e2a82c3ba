"""Ranks per layer: each layer gets exactly its own, by the shapes of the matrices that peft makes."""

import json

import peft
import pytest
import yaml
from torch import nn

from keylayers.errors import BadInput
from keylayers.exports.peft import to_lora_config
from keylayers.exports.target import CannotExpress, ExportSettings, export
from keylayers.layers.naming import named_layers
from keylayers.scores import Selection
from keylayers.training.adapters import LoraSettings, lora_config
from tests.exports.test_matrix import model_of, selection_of
from tests.exports.test_traps import Twins, deep, named
from tests.exports.truth import _arguments
from tests.tiny_models import LANGUAGE, build


def shapes(model: nn.Module, config: peft.LoraConfig) -> dict[str, int]:
    """Layer -> rank, by the rows of lora_A; a fused expert tensor has as many for each expert."""
    original = dict(model.named_parameters())
    adapted = peft.get_peft_model(model, config)
    tensors = adapted.base_model.targeted_parameter_names
    values = dict(adapted.named_parameters())
    found = {}
    for key, value in values.items():
        if ".lora_A." not in key:
            continue
        name = key.removeprefix("base_model.model.").partition(".lora_A.")[0].replace(".base_layer", "")
        owned = [tensor for tensor in tensors if tensor.rpartition(".")[0] == name]
        if not owned:
            found[name] = value.shape[0]
            continue
        sides = sorted((value.shape[1], values[key.replace("lora_A", "lora_B")].shape[0]))
        (tensor,) = [tensor for tensor in owned if sorted(original[tensor].shape[-2:]) == sides]
        experts = original[tensor].shape[0] if original[tensor].ndim == 3 else 1
        found[tensor.removesuffix(".weight")] = value.shape[0] // experts
    return found


def ranks_of(selection: Selection) -> dict[str, int]:
    """2, 4, 6, ... 10, so that every rank is another than the common one, 8, and alphas are whole at alpha 16."""
    return {name: (2, 4, 6, 10)[position % 4] for position, name in enumerate(selection.names)}


@pytest.mark.parametrize("target", ["peft", "axolotl", "unsloth"])
@pytest.mark.parametrize("name", sorted(set(LANGUAGE) - {"bert"}))
def test_each_layer_gets_its_rank_and_the_common_scale(target, name):
    selection = selection_of(name, "top:30%")
    ranks = ranks_of(selection)
    made = export(model_of(name), selection, target, ExportSettings(rank=8, alpha=16.0, ranks=ranks))
    assert shapes(build(name), peft.LoraConfig(**_arguments(made.files))) == ranks


def test_a_rank_is_not_given_to_a_block_whose_number_ends_alike():
    """peft matches the keys of rank_pattern to endings, and the first that matches counts."""
    model = deep(12)
    names = [f"model.layers.{block}.mlp.up_proj" for block in (1, 2, 10, 11)]
    ranks = dict(zip(names, (2, 3, 4, 5), strict=True))
    config = to_lora_config(model, named(model, *names), ExportSettings(ranks=ranks))
    assert shapes(deep(12), config) == ranks


def test_a_rank_is_not_given_to_a_layer_whose_name_ends_alike():
    selection = named(Twins(), "head", "other.head")
    for ranks in ({"head": 2, "other.head": 3}, {"head": 2}):
        config = to_lora_config(Twins(), selection, ExportSettings(rank=5, ranks=ranks))
        assert shapes(Twins(), config) == {"head": 2, "other.head": ranks.get("other.head", 5)}
        export(Twins(), selection, "peft", ExportSettings(rank=5, ranks=ranks))


def test_layers_without_a_rank_of_their_own_have_the_common_one_and_no_pattern():
    model = build("llama")
    selection = named(model, "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "lm_head")
    made = export(
        model,
        selection,
        "peft",
        ExportSettings(rank=8, alpha=12.0, ranks={"lm_head": 2, "model.layers.0.mlp.up_proj": 8}),
    )
    given = json.loads(made.files["adapter_config.json"])
    assert given["rank_pattern"] == {"^lm_head": 2} and given["alpha_pattern"] == {"^lm_head": 3}
    assert (given["r"], given["lora_alpha"]) == (8, 12)


@pytest.mark.parametrize("target", ["trl", "llamafactory"])
def test_a_tool_with_one_rank_says_so_and_offers_the_same_layers(target):
    selection = selection_of("llama", "top:30%")
    settings = ExportSettings(rank=8, ranks=ranks_of(selection))
    with pytest.raises(CannotExpress, match=r"one rank for all layers.* The same layers can be expressed") as refused:
        export(model_of("llama"), selection, target, settings)
    assert refused.value.nearest == selection
    equal = ExportSettings(rank=8, ranks=dict.fromkeys(selection.names, 8))
    assert set(export(model_of("llama"), selection, target, equal).matched) == set(selection.names)


def test_axolotl_takes_whole_numbers_alone():
    selection = named(model_of("llama"), "lm_head")
    with pytest.raises(CannotExpress, match=r"whole numbers for alpha, not 12\.5"):
        export(model_of("llama"), selection, "axolotl", ExportSettings(alpha=12.5))
    with pytest.raises(CannotExpress, match=r"whole numbers for alpha .*, not 1\.5"):
        export(model_of("llama"), selection, "axolotl", ExportSettings(rank=8, alpha=4.0, ranks={"lm_head": 3}))
    for target in ("peft", "trl", "llamafactory", "unsloth"):
        export(model_of("llama"), selection, target, ExportSettings(alpha=12.5))


def test_ranks_of_layers_that_do_not_exist_are_refused():
    with pytest.raises(BadInput, match="none of the 22 that could have been selected, first 'lm_haed'"):
        export(model_of("llama"), named(model_of("llama"), "lm_head"), "peft", ExportSettings(ranks={"lm_haed": 4}))


@pytest.mark.parametrize("change", [{"rank": 0}, {"ranks": {"lm_head": 0}}, {"alpha": 0.0}, {"alpha": float("nan")}])
def test_impossible_settings_are_refused(change):
    with pytest.raises(BadInput, match="expected"):
        ExportSettings(**change)


def test_training_and_exports_share_one_configuration():
    model = build("olmoe")
    layers = named_layers(model)[:7]
    ours = to_lora_config(model, Selection.of(named_layers(model), names=[layer.name for layer in layers]))
    theirs = lora_config(model, layers, LoraSettings(rank=16, alpha=32))
    assert ours.to_dict() == theirs.to_dict()


def test_the_file_loads_in_plain_peft(tmp_path):
    model = build("mixtral")
    selection = selection_of("mixtral", "top:30%")
    made = export(model, selection, "peft", ExportSettings(model="org/name", ranks=ranks_of(selection)))
    (tmp_path / "adapter_config.json").write_text(made.files["adapter_config.json"])
    config = peft.LoraConfig.from_pretrained(str(tmp_path))
    assert config.base_model_name_or_path == "org/name" and config.lora_dropout == 0
    assert shapes(build("mixtral"), config) == ranks_of(selection)


def test_yaml_names_ranks_as_axolotl_reads_them():
    selection = named(model_of("llama"), "lm_head")
    made = export(model_of("llama"), selection, "axolotl", ExportSettings(rank=8, alpha=16.0, ranks={"lm_head": 2}))
    given = yaml.safe_load(made.files["axolotl.yaml"])
    assert given["lora_rank_pattern"] == {"^lm_head": 2} and given["lora_alpha_pattern"] == {"^lm_head": 4}
