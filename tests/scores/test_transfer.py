"""Transferred rankings against closed forms: identity, depth doubled and halved, fused and separate matrices."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import BadInput, BadScores
from keylayers.layers.layer import GRANULARITIES, Layer
from keylayers.layers.naming import named_layers
from keylayers.maths.ranks import average_ranks
from keylayers.scores import LayerScores, Provenance, load, save, select, transferred
from keylayers.scores.transfer import NOTE
from tests.tiny_models import ALL, build

LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
PHI = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
GPT2 = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
MOE = (*LLAMA[:4], "mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def network(kinds, blocks: int, head: bool = True) -> tuple[Layer, ...]:
    layers = [
        Layer(f"layers.{b}.{kind}", b, kind, (f"layers.{b}.{kind}.weight",), 16)
        for b in range(blocks)
        for kind in kinds
    ]
    return (*layers, *([Layer("lm_head", None, "lm_head", ("lm_head.weight",), 64)] if head else []))


def scored(layers, values, granularity: str = "linear", **fields) -> LayerScores:
    return LayerScores(tuple(layers), np.asarray(values, dtype=float), "by_hand", granularity, **fields)


def noise(layers, seed: int = 0, granularity: str = "linear") -> LayerScores:
    return scored(layers, np.random.default_rng(seed).normal(size=len(layers)), granularity)


def shares(scores: LayerScores) -> dict[str, float]:
    """Rank shares by name, independently of the code under test."""
    ranks = average_ranks(scores.values)
    return {one.name: (rank - 0.5) / len(ranks) for one, rank in zip(scores.layers, ranks, strict=True)}


@pytest.mark.parametrize("name", ALL)
def test_the_same_model_keeps_its_ranks_and_its_ties(name):
    model = build(name)
    for granularity in GRANULARITIES:
        try:
            layers = named_layers(model, granularity)
        except BadInput:
            continue
        for values in (np.random.default_rng(1).normal(size=len(layers)), np.arange(len(layers)) % 3):
            source = scored(layers, values, granularity)
            result = transferred(source, layers)
            assert result.by_name() == pytest.approx(shares(source), abs=1e-15)
            assert np.array_equal(average_ranks(result.values), average_ranks(source.values))
            assert result.provenance.settings[NOTE]["by_role"] == len(layers)


@pytest.mark.parametrize("kinds", [LLAMA, PHI, GPT2, MOE], ids=["llama", "phi", "gpt2", "moe"])
@pytest.mark.parametrize("times", [2, 3])
def test_repeated_blocks_get_their_parents_place(kinds, times):
    source = noise(network(kinds, 4))
    result, own = transferred(source, network(kinds, 4 * times)), shares(source)
    for one, value in zip(result.layers, result.values, strict=True):
        parent = "lm_head" if one.block is None else f"layers.{one.block // times}.{one.kind}"
        assert value == own[parent]


def test_a_real_encoder_decoder_of_twice_the_depth_gets_its_parents_places():
    small = build("t5")
    config = copy.deepcopy(small.config)
    config.num_layers = config.num_decoder_layers = 4
    with torch.device("meta"):
        large = type(small)(config)
    source = noise(named_layers(small))
    result = transferred(source, named_layers(large))
    own = {(one.block, one.kind): share for one, share in zip(source.layers, shares(source).values(), strict=True)}
    assert len(result.layers) == 2 * len(source.layers)
    for one, value in zip(result.layers, result.values, strict=True):
        assert value == own[one.block // 2, one.kind]


def test_half_the_depth_gets_the_mean_of_two_blocks():
    source = noise(network(LLAMA, 6))
    result, own = transferred(source, network(LLAMA, 3)), shares(source)
    for one, value in list(zip(result.layers, result.values, strict=True))[:-1]:
        pair = [own[f"layers.{2 * one.block + half}.{one.kind}"] for half in (0, 1)]
        assert value == pytest.approx(np.mean(pair))


def test_depths_without_a_common_measure_are_weighed_by_overlap():
    source = scored(network(("attn.q_proj",), 2, head=False), [0.0, 1.0])  # rank shares 1/4 and 3/4
    result = transferred(source, network(("self_attn.q_proj",), 3, head=False))
    np.testing.assert_allclose(result.values, [1 / 4, 1 / 2, 3 / 4])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_each_roles_mean_share_is_kept_at_every_depth(before, after, seed):
    source = noise(network(LLAMA, before), seed)
    result = transferred(source, network(LLAMA, after))

    def means(values, scores):
        return {
            kind: np.mean([v for one, v in zip(scores.layers, values, strict=True) if one.kind == kind])
            for kind in LLAMA
        }

    assert means(result.values, result) == pytest.approx(means(list(shares(source).values()), source))


@given(st.integers(2, 8), st.integers(2, 11), st.integers(0, 99))
def test_what_grows_with_depth_goes_on_growing(before, after, seed):
    layers = network(LLAMA, before, head=False)
    slopes = np.random.default_rng(seed).uniform(0.1, 2, size=len(LLAMA))
    source = scored(layers, [one.block * slopes[LLAMA.index(one.kind)] for one in layers])
    result = transferred(source, network(LLAMA, after, head=False))
    for kind in LLAMA:
        curve = [value for one, value in zip(result.layers, result.values, strict=True) if one.kind == kind]
        assert all(low <= high for low, high in pairwise(curve)) and curve[0] < curve[-1]


@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_nothing_hangs_on_the_order_in_which_layers_are_listed(before, after, random):
    source = noise(network(LLAMA, before, head=False))
    target = network(MOE, after, head=False)
    mixed, other = list(zip(source.layers, source.values, strict=True)), list(target)
    random.shuffle(mixed)
    random.shuffle(other)
    shuffled = transferred(scored([one for one, _ in mixed], [value for _, value in mixed]), other)
    assert shuffled.by_name() == transferred(source, target).by_name()


def test_only_the_order_of_the_scores_counts():
    source = noise(network(LLAMA, 4))
    bent = scored(source.layers, np.exp(5 * source.values))
    target = network(GPT2, 7)
    assert transferred(source, target).by_name() == transferred(bent, target).by_name()


def test_a_fused_matrix_gets_the_mean_of_its_parts():
    source = noise(network(LLAMA, 3))
    result, own = transferred(source, network(PHI, 3)).by_name(), shares(source)
    for b in range(3):
        attention = [own[f"layers.{b}.self_attn.{part}_proj"] for part in "qkv"]
        mlp = [own[f"layers.{b}.mlp.{part}_proj"] for part in ("gate", "up")]
        assert result[f"layers.{b}.self_attn.qkv_proj"] == pytest.approx(np.mean(attention))
        assert result[f"layers.{b}.mlp.gate_up_proj"] == pytest.approx(np.mean(mlp))
        assert result[f"layers.{b}.mlp.down_proj"] == own[f"layers.{b}.mlp.down_proj"]


def test_parts_get_the_place_of_the_fused_matrix():
    source = noise(network(PHI, 3))
    result, own = transferred(source, network(LLAMA, 3)), shares(source)
    named = result.by_name()
    for b in range(3):
        assert {named[f"layers.{b}.self_attn.{part}_proj"] for part in "qkv"} == {own[f"layers.{b}.self_attn.qkv_proj"]}
        assert {named[f"layers.{b}.mlp.{part}_proj"] for part in ("gate", "up")} == {
            own[f"layers.{b}.mlp.gate_up_proj"]
        }
    note = result.provenance.settings[NOTE]
    assert (note["by_role"], note["by_stand_in"], note["by_depth_alone"]) == (3 * 2 + 1, 3 * 5, 0)
    assert note["stand_ins"]["attention.q"] == ["attention.qkv"]


def test_real_models_of_other_architectures_correspond():
    """Every pair of these: no layer inside the blocks falls back on depth alone."""
    names = ("llama", "gpt2", "phi3", "gpt-neox", "gptj", "olmoe", "deepseek-v3", "gpt-oss", "t5", "bert")
    layers = {name: named_layers(build(name)) for name in names}
    for source in names:
        for target in names:
            note = transferred(noise(layers[source]), layers[target]).provenance.settings[NOTE]
            assert set(note["without_counterpart"]) <= {"head", "head.transform"}, (source, target)


def test_where_some_blocks_lack_a_role_their_own_stand_ins_are_read():
    """DeepSeek: block 0 is dense, the others are mixtures; a dense model's mlp follows the experts there."""
    source = noise(named_layers(build("deepseek-v3")))
    result, own = transferred(source, network(LLAMA, 3)).by_name(), shares(source)
    assert result["layers.0.mlp.down_proj"] == own["model.layers.0.mlp.down_proj"]
    for b in (1, 2):
        assert result[f"layers.{b}.mlp.down_proj"] == own[f"model.layers.{b}.mlp.experts.down_proj"]


def test_experts_in_a_list_correspond_one_by_one_or_by_their_mean():
    def experts(count):
        return network([f"mlp.experts.{e}.w2" for e in range(count)], 2, head=False)

    source = noise(experts(4))
    own = shares(source)
    assert transferred(source, experts(4)).by_name() == pytest.approx(own)
    fewer = transferred(source, experts(3)).by_name()
    for b in (0, 1):
        mean = np.mean([own[f"layers.{b}.mlp.experts.{e}.w2"] for e in range(4)])
        assert all(fewer[f"layers.{b}.mlp.experts.{e}.w2"] == pytest.approx(mean) for e in range(3))


def test_what_has_no_counterpart_takes_the_mean_at_its_depth():
    source = noise(network(LLAMA, 4, head=False))
    result, own = transferred(source, network((*LLAMA, "mixer.in_proj"), 4)), shares(source)
    for b in range(4):
        mean = np.mean([own[f"layers.{b}.{kind}"] for kind in LLAMA])
        assert result.by_name()[f"layers.{b}.mixer.in_proj"] == pytest.approx(mean)
    last = np.mean([own[f"layers.3.{kind}"] for kind in LLAMA])
    assert result.by_name()["lm_head"] == pytest.approx(last)  # it runs after the last block
    note = result.provenance.settings[NOTE]
    assert (note["by_role"], note["by_depth_alone"]) == (28, 5)
    assert note["without_counterpart"] == ["mixer.in_proj", "head"]


def test_a_planted_ranking_is_found_again_in_another_architecture():
    """The mlp outputs of the last third are planted on top of a 12-block llama; a 6-block GPT-2 must have its own."""
    layers = network(LLAMA, 12)
    source = scored(layers, [2.0 * (one.kind == "mlp.down_proj" and one.block >= 8) for one in layers])
    found = select(transferred(source, network(GPT2, 6)), "top:2").names
    assert set(found) == {"layers.4.mlp.c_proj", "layers.5.mlp.c_proj"}


def test_there_and_back_at_twice_the_depth_is_the_same_order():
    source = noise(network(LLAMA, 5))
    back = transferred(transferred(source, network(LLAMA, 10)), source.layers)
    assert np.array_equal(back.order(), source.order())


def test_it_says_where_it_comes_from_and_survives_a_file(tmp_path):
    origin = Provenance(model={"id": "some/llama"}, data=({"id": "alpaca", "sha256": "00"},), settings={"steps": 3})
    source = scored(network(LLAMA, 3), np.arange(22), provenance=origin)
    result = transferred(source, network(GPT2, 2), {"id": "some/gpt2"})
    note = result.provenance.settings[NOTE]
    assert result.ordinal and result.granularity == "linear" and result.criterion == "transferred_by_hand"
    assert result.provenance.model == {"id": "some/gpt2"} and result.provenance.data == origin.data
    assert note["from"]["sha256"] == source.sha256 and note["from"]["model"] == {"id": "some/llama"}
    assert note["from"]["settings"] == {"steps": 3} and note["stand_ins"] == {
        "attention.qkv": ["attention.q", "attention.k", "attention.v"]
    }
    save(result, tmp_path / "gpt2.json")
    assert load(tmp_path / "gpt2.json") == result


@pytest.mark.parametrize("name", ["hf-resnet", "cifar-resnet"])
@pytest.mark.parametrize("granularity", ["conv", "linear"])
def test_a_convolutional_net_and_a_language_model_do_not_correspond(name, granularity):
    convolutional, language = named_layers(build(name), granularity), named_layers(build("llama"))
    with pytest.raises(
        BadScores, match=r"no layer corresponds: the scores are of .*; the other model has attention\.q"
    ):
        transferred(noise(convolutional, granularity=granularity), language)
    with pytest.raises(BadScores, match="no layer corresponds"):
        transferred(noise(language), convolutional)


def test_no_layers_are_an_error():
    with pytest.raises(BadScores, match="there are no layers"):
        transferred(noise(network(LLAMA, 2)), ())


def test_values_are_shares_whatever_stands_for_what():
    names = ("llama", "deepseek-v3", "t5", "vit")
    layers = {name: named_layers(build(name)) for name in names}
    for source in names:
        for target in names:
            values = transferred(noise(layers[source]), layers[target]).values
            assert ((values > 0) & (values < 1)).all()
