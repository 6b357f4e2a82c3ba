"""Blocks and experts told apart by what they are: no coincidence of sizes makes a list of blocks one of experts."""

from collections import Counter

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from keylayers.errors import BadInput
from keylayers.layers.blocks import find_blocks
from keylayers.layers.naming import named_layers
from tests.tiny_models import SMALL

SIZES = ("vocab", "positions", "features", "classes", "heads")


class Attending(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 1)


class Experts(nn.ModuleDict):
    """As some models hold them: by name, with a module of another sort beside them."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__({f"expert_{index}": feed_forward(width) for index in range(count)})
        self.dropout = nn.Dropout()


class Mixing(nn.Module):
    def __init__(self, width: int, experts: nn.Module, count: int) -> None:
        super().__init__()
        self.mix, self.experts, self.router = nn.Linear(width, width), experts, nn.Linear(width, count)


def feed_forward(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))


def mixing(width: int, count: int) -> nn.Module:
    return Mixing(width, nn.ModuleList(feed_forward(width) for _ in range(count)), count)


class Network(nn.Module):
    def __init__(self, blocks: list[nn.Module], width: int, sizes: dict[str, int]) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(sizes["vocab"], width), nn.Embedding(sizes["positions"], width)
        self.first, self.layers = nn.Linear(sizes["features"], width), nn.ModuleList(blocks)
        self.head, self.heads = nn.Linear(width, sizes["classes"]), nn.Linear(width, sizes["heads"])


@pytest.mark.parametrize("make", [Attending, feed_forward, lambda width: mixing(width, 2)])
@given(
    st.integers(2, 4), st.integers(2, 4),
    st.fixed_dictionaries(dict.fromkeys(SIZES, st.integers(2, 4))),
)  # fmt: skip
@settings(max_examples=10, deadline=None)
def test_what_stands_beside_the_blocks_may_have_as_many_rows_as_there_are(make, count, width, sizes):
    with torch.device("meta"):
        model = Network([make(width) for _ in range(count)], width, sizes)
    assert find_blocks(model) == tuple(f"layers.{index}" for index in range(count))
    kinds = Counter(layer.kind for layer in named_layers(model) if layer.block is not None)
    assert kinds and set(kinds.values()) == {count}


@pytest.mark.parametrize("sizes", [{"vocab_size": 3}, {"hidden_size": 3, "num_attention_heads": 1}, {"num_labels": 3}])
@pytest.mark.parametrize("family", ["Llama", "GPT2", "Bert"])
def test_so_may_those_of_published_architectures(family, sizes):
    kind = "ForSequenceClassification" if "num_labels" in sizes else {"GPT2": "LMHeadModel", "Bert": "ForMaskedLM"}
    name = family + (kind if isinstance(kind, str) else kind.get(family, "ForCausalLM"))
    own = {"n_positions": 3, **SMALL, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, **sizes}
    with torch.device("meta"):
        model = getattr(hf, name)(getattr(hf, f"{family}Config")(**own))
    assert len(find_blocks(model)) == 3
    assert {layer.block for layer in named_layers(model)} >= {0, 1, 2}


@given(st.integers(2, 4), st.integers(2, 4), st.integers(2, 4))
@settings(max_examples=10, deadline=None)
def test_experts_are_recognised_whatever_else_has_their_number(width, blocks, count):
    with torch.device("meta"):
        model = Network([mixing(width, count) for _ in range(blocks)], width, dict.fromkeys(SIZES, count))
    assert len(named_layers(model, "expert")) == blocks * count
    assert [layer.kind for layer in named_layers(model, "router")] == ["router"] * blocks


def test_experts_held_by_name_are_experts_and_their_dropout_is_none():
    model = nn.Sequential(*(Mixing(4, Experts(4, 3), 3) for _ in range(2)))
    model = nn.ModuleDict({"layers": nn.ModuleList(model.children())})
    assert [layer.kind for layer in named_layers(model, "expert")] == [f"experts.expert_{i}" for i in range(3)] * 2
    assert [layer.kind for layer in named_layers(model, "router")] == ["router"] * 2


def test_a_router_may_have_modules_of_its_own_and_is_no_linear_layer():
    model = nn.ModuleDict({"layers": nn.ModuleList(mixing(4, 3) for _ in range(2))})
    for block in model["layers"]:
        block.router = nn.ModuleDict({"norm": nn.LayerNorm(4), "classifier": nn.Linear(4, 3)})
    assert {layer.kind for layer in named_layers(model, "router")} == {"router.classifier"}
    assert "router.classifier" not in {layer.kind for layer in named_layers(model)}


def test_matrices_of_heads_that_one_tensor_holds_are_no_experts():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(4, 4), nn.Linear(4, 4)
            self.gates = nn.Parameter(torch.zeros(3, 4, 4))

    model = nn.ModuleDict({"layers": nn.ModuleList(Gated() for _ in range(2))})
    with pytest.raises(BadInput, match="no layer of granularity 'expert'"):
        named_layers(model, "expert")
    assert "layers.0.gates" in {layer.name for layer in named_layers(model)}


def test_lists_that_run_by_turns_make_one_block():
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attentions = nn.ModuleList(Attending(4) for _ in range(2))
            self.mlps = nn.ModuleList(feed_forward(4) for _ in range(2))

    model = nn.ModuleDict({"layers": nn.ModuleList(Shortcut() for _ in range(2))})
    assert find_blocks(model) == ("layers.0", "layers.1")
