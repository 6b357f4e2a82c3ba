"""`keylayers transfer`: the file it writes, the account it gives, and what it refuses."""

import re

import numpy as np
import pytest
import transformers as hf

from keylayers.layers import named_layers
from keylayers.models.loading import LoadedModel, load_shape
from keylayers.scores import LayerScores, Provenance, load, save, transferred


@pytest.fixture(scope="module")
def ranking(world, tmp_path_factory):
    """Random scores of the world's model of three blocks."""
    model = load_shape(str(world.model))
    layers = named_layers(model)
    values = np.random.default_rng(0).normal(size=len(layers))
    origin = Provenance(model=LoadedModel(model, str(world.model)).identity())
    path = tmp_path_factory.mktemp("ranking") / "scores.json"
    save(LayerScores(layers, values, "by_hand", "linear", origin), path)
    return path


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Configurations of other models, without weights."""
    folder = tmp_path_factory.mktemp("others")
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    configs = {
        "deep": hf.LlamaConfig(vocab_size=32, num_hidden_layers=6, architectures=["LlamaForCausalLM"], **shape),
        "gpt2": hf.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, architectures=["GPT2LMHeadModel"]),
        "resnet": hf.ResNetConfig(architectures=["ResNetForImageClassification"]),
    }
    for name, config in configs.items():
        config.save_pretrained(folder / name)
    return folder


def test_a_model_of_twice_the_depth_is_ranked_from_its_configuration_alone(cli, ranking, others, tmp_path):
    result = cli("transfer", ranking, "--to", others / "deep", "--out", "deep.json")
    assert result.code == 0 and "43 of 43 layers" in result.out and "fell back" not in result.out
    source, stored = load(ranking), load(tmp_path / "deep.json")
    assert stored == transferred(source, stored.layers, stored.provenance.model)
    assert stored.provenance.model["architecture"] == "LlamaForCausalLM" and stored.ordinal
    best = source.ranking()[0]
    pair = {best.kind} if best.block is None else {f"model.layers.{2 * best.block + i}.{best.kind}" for i in (0, 1)}
    assert {layer.name for layer in stored.ranking()[: len(pair)]} == pair


def test_it_says_what_fell_back(cli, ranking, others):
    shown = cli("transfer", ranking, "--to", others / "gpt2").out
    assert "6 of 8 layers" in shown
    assert (
        "2 fell back on roles that stand for theirs: attention.qkv from attention.q, attention.k, attention.v" in shown
    )
    assert "stored" not in shown


def test_the_transferred_ranking_compares_with_one_of_that_model(cli, world, ranking, others):
    assert cli("transfer", ranking, "--to", others / "deep", "--out", "deep.json").code == 0
    refused = cli("compare", ranking, "deep.json")
    assert refused.code == 2 and "`keylayers transfer SCORES --to MODEL`" in refused.err
    assert cli("transfer", "deep.json", "--to", world.model, "--out", "back.json").code == 0
    same = cli("compare", ranking, "back.json", "--top", "30%")
    assert same.code == 0 and re.search(r"^rank-biased overlap, p=0\.9 +1\.000", same.out, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "{others}/resnet"], "no layer corresponds"),
        (["--to", "{others}/nowhere"], "no folder"),
        (["--to", "bundled:lama"], "did you mean 'llama'"),
        (["--to", "bundled:llama", "--out", "folder"], "ends in .json"),
        ([], "Missing option '--to'"),
    ],
)
def test_what_cannot_be_transferred_says_why(cli, ranking, others, tmp_path, words, said):
    result = cli("transfer", ranking, *(word.format(others=others) for word in words))
    assert result.code == 2 and said in result.err and "Traceback" not in result.err
    assert not list(tmp_path.glob("*.json"))
