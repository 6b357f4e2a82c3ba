"""EasyEdit's hyper-parameters: which layers its methods find by the templates, and what no template says.

The rule agreed with EasyEdit's own: its hyper-parameter classes read 374 of these files (every kind of every causal
tiny model: 334 for FT, 26 for MEMIT, 14 for ROME), and the lines of its source that collect the weights, run on the
models, collected exactly the asked ones.
"""

import pytest
import yaml

from keylayers.exports import easyedit
from keylayers.exports.target import CannotExpress, ExportSettings, export
from keylayers.layers import named_layers
from keylayers.scores import Selection
from tests.tiny_models import CAUSAL, build

SETTINGS = ExportSettings(model="org/my-llama")
DENSE_MLP_OUT = {
    "llama": "mlp.down_proj", "gemma3": "mlp.down_proj", "phi3": "mlp.down_proj", "gpt2": "mlp.c_proj",
    "gptj": "mlp.fc_out", "gpt-neox": "mlp.dense_4h_to_h",
}  # fmt: skip


def of_kind(model, kind, blocks, granularity="linear"):
    layers = named_layers(model, granularity)
    return Selection.of(layers, names=[one.name for one in layers if one.kind == kind and one.block in blocks])


def hparams(found):
    return {one["alg_name"]: one for one in map(yaml.safe_load, found.files.values())}


def edited(model, **settings):
    content = {"alg_name": "FT", "layers": [1], **settings}
    return easyedit.read_back(model, {"hparams/FT/x.yaml": yaml.safe_dump(content)})


@pytest.mark.parametrize("name", CAUSAL)
def test_one_kind_in_some_blocks_and_whole_blocks_are_found_again(name):
    model = build(name)
    kind = named_layers(model)[-2].kind
    for selection in (
        of_kind(model, kind, {0, 2}),
        Selection.of(named_layers(model, "block"), blocks=[0, 1]),
        of_kind(model, named_layers(model, "sublayer")[0].kind, {1}, "sublayer"),
    ):
        assert set(export(model, selection, "easyedit", SETTINGS).matched) == set(selection.names)


@pytest.mark.parametrize(("name", "kind"), DENSE_MLP_OUT.items())
def test_memit_and_rome_get_the_matrix_that_writes_to_the_residual_stream(name, kind):
    model = build(name)
    two = hparams(export(model, of_kind(model, kind, {0, 2}), "easyedit", SETTINGS))
    assert two.keys() == {"FT", "MEMIT"} and two["MEMIT"]["layers"] == [0, 2] and two["MEMIT"]["v_loss_layer"] == 2
    named, own = dict(model.named_modules()), dict(model.named_parameters())
    for key in ("rewrite_module_tmp", "layer_module_tmp", "mlp_module_tmp", "attn_module_tmp"):
        assert two["MEMIT"][key].format(2) in named
    assert two["MEMIT"]["ln_f_module"] in named
    assert f"{two['MEMIT']['lm_head_module']}.weight" in own  # looked up among named parameters: a tied head is not
    assert hparams(export(model, of_kind(model, kind, {1}), "easyedit", SETTINGS)).keys() == {"FT", "MEMIT", "ROME"}


def test_the_templates_are_those_of_easyedits_own_files():
    """hparams/MEMIT/llama-7b.yaml and gpt2-xl.yaml of zjunlp/EasyEdit."""
    llama = hparams(export(build("llama"), of_kind(build("llama"), "mlp.down_proj", {1}), "easyedit", SETTINGS))[
        "MEMIT"
    ]
    assert llama["rewrite_module_tmp"] == "model.layers.{}.mlp.down_proj"
    assert (llama["ln_f_module"], llama["lm_head_module"]) == ("model.norm", "lm_head")
    gpt2 = hparams(export(build("gpt2"), of_kind(build("gpt2"), "mlp.c_proj", {1}), "easyedit", SETTINGS))["MEMIT"]
    assert gpt2["attn_module_tmp"] == "transformer.h.{}.attn"
    assert (gpt2["ln_f_module"], gpt2["lm_head_module"]) == ("transformer.ln_f", "transformer.wte")


@pytest.mark.parametrize(
    ("name", "kind"), [("llama", "mlp.up_proj"), ("llama", "self_attn.o_proj"), ("mixtral", "mlp.experts.down_proj")]
)
def test_other_matrices_are_for_fine_tuning_only(name, kind):
    model = build(name)
    assert hparams(export(model, of_kind(model, kind, {1}), "easyedit", SETTINGS)).keys() == {"FT"}


def test_a_mixture_of_kinds_is_refused_with_the_kind_that_holds_most():
    model = build("llama")
    layers = named_layers(model)
    names = [
        "model.layers.0.mlp.down_proj",
        "model.layers.2.mlp.down_proj",
        "model.layers.1.self_attn.k_proj",
        "lm_head",
    ]
    with pytest.raises(CannotExpress, match="numbers blocks, and lm_head lies in none") as caught:
        export(model, Selection.of(layers, names=names), "easyedit", SETTINGS)
    assert caught.value.nearest.names == tuple(names[:2])
    with pytest.raises(CannotExpress, match="one kind of layer in some blocks; asked are 2"):
        export(model, Selection.of(layers, names=names[:3]), "easyedit", SETTINGS)
    with pytest.raises(CannotExpress, match="Nothing near it"):
        export(model, Selection.of(layers, names=["lm_head"]), "easyedit", SETTINGS)


@pytest.mark.parametrize("name", ["bert", "t5", "vit"])
def test_only_causal_language_models_are_edited(name):
    model = build(name)
    selection = Selection.of(named_layers(model), blocks=[1])
    with pytest.raises(CannotExpress, match="edit causal language models"):
        export(model, selection, "easyedit", SETTINGS)


def test_fine_tuning_takes_every_name_that_contains_the_template():
    model = build("llama")
    assert edited(model, rewrite_module_tmp="model.layers.{}.mlp.up_proj.weight") == {"model.layers.1.mlp.up_proj"}
    more = edited(model, rewrite_module_tmp="layers.{}.mlp.up")  # shown by full name: it is no layer's template
    assert more == {"model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(CannotExpress, match=r"FT would find no parameter for model\.layers\.1\.mlp\.nowhere"):
        edited(model, rewrite_module_tmp="model.layers.{}.mlp.nowhere")
    with pytest.raises(CannotExpress, match="MEMIT would find no parameter"):
        edited(model, alg_name="MEMIT", rewrite_module_tmp="model.layers.{}.mlp.up_proj.weight")


def test_files_that_disagree_are_refused():
    model = build("llama")
    files = dict(export(model, of_kind(model, "mlp.down_proj", {1}), "easyedit", SETTINGS).files)
    files["hparams/FT/my-llama.yaml"] = files["hparams/FT/my-llama.yaml"].replace("- 1", "- 2")
    with pytest.raises(CannotExpress, match="would edit different layers"):
        easyedit.read_back(model, files)
