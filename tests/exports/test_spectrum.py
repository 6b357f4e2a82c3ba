"""Spectrum's two files: the YAML by axolotl's rule, the JSON by Spectrum's own.

Both rules agreed with the programs themselves, run on these models at every granularity: axolotl's freeze_layers_except
on 69 lists, and Spectrum's generate_unfrozen_params_yaml on their rankings at every percentage from 1 to 100.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import transformers as hf
import yaml

from keylayers.errors import BadInput, BadSelection
from keylayers.exports import spectrum
from keylayers.exports.target import CannotExpress, ExportSettings, export
from keylayers.layers import GRANULARITIES, named_layers
from keylayers.scores import LayerScores, Selection, select
from tests.tiny_models import ALL, build, inputs

SETTINGS = ExportSettings(model="some_org/My_Model-7B")
OURS = {"cifar-resnet"}  # no model of transformers, so axolotl cannot load it
JSON = "model_snr_results/snr_results_some-org-My-Model-7B.json"


def layers_of(name, model):
    return named_layers(model, "conv" if "resnet" in name else "linear", example=inputs(name))


def trained(model, *patterns):
    return spectrum.read_back(model, {"a.yaml": yaml.safe_dump({"unfrozen_parameters": list(patterns)})})


def texts(found):
    ranking = json.loads(found.files[JSON])
    (listed,) = (text for name, text in found.files.items() if name != JSON)
    return ranking, listed


@pytest.mark.parametrize("name", sorted(ALL.keys() - OURS))
def test_the_list_trains_exactly_the_asked_parameters(name):
    model = build(name)
    layers = layers_of(name, model)
    for selection in (
        Selection.of(layers, names=[layer.name for layer in layers[::3]]),
        Selection.of(named_layers(model, "block"), blocks=[1]),
    ):
        found = export(model, selection, "spectrum", SETTINGS)
        assert set(found.matched) == {name for layer in selection.chosen for name in layer.parameters}


def test_files_are_named_and_ranked_as_spectrum_does():
    model = build("llama")
    layers = named_layers(model)
    scores = LayerScores(layers, np.arange(len(layers), dtype=float), "by_hand", "linear")
    found = export(model, select(scores, "top:4"), "spectrum", replace(SETTINGS, scores=scores))
    ranking, _ = texts(found)
    assert ranking == {layer.name: {"snr": float(i), "type": layer.kind} for i, layer in enumerate(layers)}
    listed = next(name for name in found.files if name != JSON)
    assert listed.startswith("snr_results_some-org-My-Model-7B_unfrozenparameters_")
    assert listed.removesuffix("percent.yaml").rpartition("_")[2].isdigit()


def test_without_scores_the_selection_is_the_ranking():
    model = build("llama")
    found = export(model, Selection.of(named_layers(model), blocks=[1]), "spectrum", SETTINGS)
    ranking, _ = texts(found)
    assert {name for name, entry in ranking.items() if entry["snr"] == 1.0} == set(found.selection.names)


def test_scores_of_other_layers_are_refused():
    model = build("llama")
    layers = named_layers(model)
    few = LayerScores(layers[:5], np.ones(5), "by_hand", "linear")
    with pytest.raises(BadSelection, match=r"the scores have no value for model\.layers\.0"):
        export(model, Selection.of(layers, blocks=[1]), "spectrum", replace(SETTINGS, scores=few))


def test_spectrum_takes_the_top_of_each_type_and_always_the_head_and_the_embeddings():
    ranking = {
        "a.0.x": {"snr": 3.0, "type": "x"}, "a.1.x": {"snr": 5.0, "type": "x"}, "a.2.x": {"snr": 4.0, "type": "x"},
        "a.0.y": {"snr": 9.0, "type": "y"}, "a.1.y": {"snr": 1.0, "type": "y"},
    }  # fmt: skip
    always = ["^lm_head.weight$", "^model.embed_tokens.weight$"]
    assert spectrum.top_per_type(ranking, 33) == always  # int(0.99) and int(0.66) are none
    assert spectrum.top_per_type(ranking, 50) == [*always, "a.1.x", "a.0.y"]
    assert spectrum.top_per_type(ranking, 67) == [*always, "a.1.x", "a.2.x", "a.0.y"]


def test_the_header_says_what_spectrum_itself_would_choose():
    model = build("gpt2")  # its head is tied and its embeddings go by another name: nothing is added
    layers = named_layers(model)
    kinds = sorted({layer.kind for layer in layers})
    top = [next(layer for layer in layers if layer.kind == kind).name for kind in kinds]
    even = texts(export(model, Selection.of(layers, names=top), "spectrum", SETTINGS))[1]
    assert "Spectrum itself would at --top-percent 34 train the same." in even
    llama = build("llama")
    uneven = texts(export(llama, Selection.of(named_layers(llama), blocks=[1]), "spectrum", SETTINGS))[1]
    assert "train 2 more (lm_head.weight, model.embed_tokens.weight); no other percentage" in uneven


def test_a_name_in_the_ranking_stands_for_all_that_begin_with_it():
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=16, num_hidden_layers=12, **shape))
    assert len(trained(model, "model.layers.1")) == 3 * 9  # the trap: 1, 10 and 11
    ranking, _ = texts(export(model, Selection.of(named_layers(model, "block"), blocks=[1]), "spectrum", SETTINGS))
    assert all(len(trained(model, key)) == 9 for key in ranking)


@pytest.mark.parametrize("name", sorted(ALL.keys() - OURS))
def test_every_name_in_the_ranking_stands_for_its_layer_alone(name):
    model = build(name)
    for granularity in GRANULARITIES:
        try:
            layers = named_layers(model, granularity, example=inputs(name))
        except BadInput:
            continue
        for layer in layers[:: max(1, len(layers) // 4)]:
            one = Selection.of(layers, names=[layer.name], allow_total=True)
            if not layer.parameters:
                with pytest.raises(BadSelection, match="is a skip connection without a weight"):
                    export(model, one, "spectrum", SETTINGS)
                continue
            found = export(model, one, "spectrum", SETTINGS)
            ranking, _ = texts(found)
            chosen = [key for key, entry in ranking.items() if entry["snr"] == 1.0]
            assert trained(model, *chosen) == set(layer.parameters) == set(found.matched)


def test_the_list_leaves_the_head_out_unless_asked_and_refuses_a_tied_one():
    model = build("llama")
    _, text = texts(export(model, Selection.of(named_layers(model), blocks=[1]), "spectrum", SETTINGS))
    listed = yaml.safe_load(text)
    assert len(listed["unfrozen_parameters"]) == 7
    tied = build("llama-tied")
    asked = Selection.of(named_layers(tied, tied=True), names=["lm_head", "model.layers.1.mlp.up_proj"])
    with pytest.raises(CannotExpress, match="lm_head shares its weight") as caught:
        export(tied, asked, "spectrum", SETTINGS)
    assert caught.value.nearest.names == ("model.layers.1.mlp.up_proj",)
