"""Kind alone: whole kinds in order, and inside a kind nothing but the seed."""

from itertools import pairwise

import numpy as np
import pytest

from keylayers.criteria.protocol import Evidence
from keylayers.criteria.type_only import TypeOnly, score_type_only
from keylayers.errors import BadInput
from keylayers.layers.naming import named_layers
from keylayers.layers.roles import role_of
from keylayers.scores.scores import LayerScores
from tests import tiny_models


def scores_of(name: str, first: str = "largest", seed: int = 0) -> LayerScores:
    return score_type_only(Evidence(), named_layers(tiny_models.build(name)), TypeOnly(first, seed))


def kinds_in_order(scores: LayerScores) -> list[str]:
    return list(dict.fromkeys(layer.kind for layer in scores.ranking()))


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmoe", "deepseek-v3", "t5", "bert", "vit"])
@pytest.mark.parametrize("first", ["largest", "smallest", "attention", "mlp", "qv", "down"])
def test_every_layer_of_a_kind_stands_before_every_layer_of_the_next(name: str, first: str) -> None:
    scores = scores_of(name, first)
    ranked = [layer.kind for layer in scores.ranking()]
    assert sum(a != b for a, b in pairwise(ranked)) == len(set(ranked)) - 1
    sizes = [np.mean([layer.size for layer in scores.layers if layer.kind == kind]) for kind in kinds_in_order(scores)]
    if first in ("largest", "smallest"):
        assert sizes == sorted(sizes, reverse=first == "largest")


@pytest.mark.parametrize(
    ("name", "first", "expected"),
    [
        ("llama", "qv", {"self_attn.q_proj", "self_attn.v_proj"}),
        ("llama", "attention", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}),
        ("gpt2", "qv", {"attn.c_attn"}),
        ("phi3", "mlp", {"mlp.gate_up_proj", "mlp.down_proj"}),
        ("olmoe", "down", {"mlp.experts.down_proj"}),
        ("bert", "attention.v,mlp.up", {"attention.self.value", "intermediate.dense"}),
        ("gptj", "mlp.gate", {"mlp.fc_in"}),
    ],
)
def test_roles_find_their_kinds_whatever_a_network_calls_them(name: str, first: str, expected: set[str]) -> None:
    assert set(kinds_in_order(scores_of(name, first))[: len(expected)]) == expected


def test_a_list_of_roles_keeps_its_order() -> None:
    found = kinds_in_order(scores_of("llama", "mlp.up, attention.k,head"))
    assert found[:3] == ["mlp.up_proj", "self_attn.k_proj", "lm_head"]
    layers = named_layers(tiny_models.build("llama"))
    assert [role_of(next(one for one in layers if one.kind == kind)) for kind in found[:2]] == ["mlp.up", "attention.k"]


def test_inside_a_kind_the_seed_decides_and_depth_does_not() -> None:
    first, again, other = (scores_of("llama", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.values, again.values)
    assert kinds_in_order(first) == kinds_in_order(other) and first.ranking() != other.ranking()
    assert first.provenance.seed == 1
    blocks = [
        next(layer.block for layer in scores_of("llama", seed=seed).ranking() if layer.kind == "mlp.up_proj")
        for seed in range(60)
    ]
    assert all(10 <= blocks.count(block) <= 32 for block in range(3))


def test_a_role_that_no_layer_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadInput, match=r"no layer has the role mlp\.dwon, .*the roles are attention\.k, .*mlp\.down"):
        scores_of("llama", "attention.q,mlp.dwon")
    model = tiny_models.build("cifar-resnet")
    with pytest.raises(BadInput, match="no layer has the role attention, cross_attention"):
        score_type_only(Evidence(), named_layers(model, "conv"), TypeOnly("attention"))
