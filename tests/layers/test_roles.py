"""Roles against tables written by hand from the architectures, and which roles stand for which."""

from collections import Counter

import pytest

from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.roles import role_of, stand_ins
from tests.tiny_models import ALL, LANGUAGE, build

SEPARATE = {
    "self_attn.q_proj": "attention.q",
    "self_attn.k_proj": "attention.k",
    "self_attn.v_proj": "attention.v",
    "self_attn.o_proj": "attention.o",
}
GATED = {"mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down"}
EXPERTS = {"mlp.experts.gate_up_proj": "experts.gate_up", "mlp.experts.down_proj": "experts.down"}
HEAD = {"lm_head": "head"}

TABLE: dict[str, dict[str, str]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "olmo2"), SEPARATE | GATED | HEAD),
    **dict.fromkeys(("llama-tied", "gemma2", "gemma3"), SEPARATE | GATED),
    **dict.fromkeys(("olmoe", "qwen3-moe", "mixtral", "gpt-oss"), SEPARATE | EXPERTS | HEAD),
    "phi3": {
        "self_attn.qkv_proj": "attention.qkv",
        "self_attn.o_proj": "attention.o",
        "mlp.gate_up_proj": "mlp.gate_up",
        "mlp.down_proj": "mlp.down",
        "lm_head": "head",
    },
    "gpt2": {
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.o",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.down",
    },
    "gpt-neox": {
        "attention.query_key_value": "attention.qkv",
        "attention.dense": "attention.o",
        "mlp.dense_h_to_4h": "mlp.up",
        "mlp.dense_4h_to_h": "mlp.down",
        "lm_head": "head",
    },
    "gptj": {
        "attn.q_proj": "attention.q",
        "attn.k_proj": "attention.k",
        "attn.v_proj": "attention.v",
        "attn.out_proj": "attention.o",
        "mlp.fc_in": "mlp.up",
        "mlp.fc_out": "mlp.down",
        "lm_head": "head",
    },
    "deepseek-v3": {
        "self_attn.q_a_proj": "attention.q_down",
        "self_attn.q_b_proj": "attention.q_up",
        "self_attn.kv_a_proj_with_mqa": "attention.kv_down",
        "self_attn.kv_b_proj": "attention.kv_up",
        "self_attn.o_proj": "attention.o",
        **GATED,
        **EXPERTS,
        "mlp.shared_experts.gate_proj": "shared_experts.gate",
        "mlp.shared_experts.up_proj": "shared_experts.up",
        "mlp.shared_experts.down_proj": "shared_experts.down",
        "lm_head": "head",
    },
    "t5": {
        **{f"layer.0.SelfAttention.{part}": f"attention.{part}" for part in "qkvo"},
        **{f"layer.1.EncDecAttention.{part}": f"cross_attention.{part}" for part in "qkvo"},
        **{f"layer.{place}.DenseReluDense.wi": "mlp.up" for place in (1, 2)},
        **{f"layer.{place}.DenseReluDense.wo": "mlp.down" for place in (1, 2)},
    },
    "bert": {
        "attention.self.query": "attention.q",
        "attention.self.key": "attention.k",
        "attention.self.value": "attention.v",
        "attention.output.dense": "attention.o",
        "intermediate.dense": "mlp.up",
        "output.dense": "mlp.down",
        "cls.predictions.transform.dense": "head.transform",
    },
    "vit": {
        "attention.q_proj": "attention.q",
        "attention.k_proj": "attention.k",
        "attention.v_proj": "attention.v",
        "attention.o_proj": "attention.o",
        "mlp.fc1": "mlp.up",
        "mlp.fc2": "mlp.down",
        "classifier": "head",
    },
    "hf-resnet": {"classifier.1": "head"},
    "cifar-resnet": {"linear": "head"},
}


def layer(kind: str, block: int | None = 3, parameters: tuple[str, ...] | None = None) -> Layer:
    name = kind if block is None else f"layers.{block}.{kind}"
    return Layer(name, block, kind, parameters or (f"{name}.weight",), 16)


@pytest.mark.parametrize("name", ALL)
def test_linear_layers_have_the_roles_written_down_by_hand(name: str) -> None:
    assert {one.kind: role_of(one) for one in named_layers(build(name), "linear")} == TABLE[name]


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "gptj", "bert"])
def test_each_block_has_each_role_once(name: str) -> None:
    roles = [(one.block, role_of(one)) for one in named_layers(build(name), "linear")]
    assert max(Counter(roles).values()) == 1


def test_an_encoder_decoder_has_cross_attention_in_its_decoder_only() -> None:
    counts = Counter(role_of(one) for one in named_layers(build("t5"), "linear"))
    assert all(counts[f"attention.{part}"] == 4 and counts[f"cross_attention.{part}"] == 2 for part in "qkvo")
    assert counts["mlp.up"] == counts["mlp.down"] == 4


@pytest.mark.parametrize("name", LANGUAGE)
def test_sublayers_are_attention_and_mlp(name: str) -> None:
    counts = Counter(role_of(one) for one in named_layers(build(name), "sublayer"))
    expected = {"attention": 4, "cross_attention": 2, "mlp": 4} if name == "t5" else {"attention": 3, "mlp": 3}
    assert counts == expected


@pytest.mark.parametrize("name", ["olmoe", "mixtral", "deepseek-v3", "gpt-oss"])
def test_experts_routers_and_blocks_have_roles_of_their_own(name: str) -> None:
    model = build(name)
    for granularity in ("expert", "router", "block"):
        assert {role_of(one) for one in named_layers(model, granularity)} == {granularity}


@pytest.mark.parametrize("name", ["hf-resnet", "cifar-resnet", "vit"])
def test_convolutions_keep_their_kind(name: str) -> None:
    for one in named_layers(build(name), "conv"):
        assert role_of(one) == one.kind


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        ("self_attention.query_key_value", "attention.qkv"),  # Falcon, BLOOM
        ("self_attention.dense", "attention.o"),
        ("attn.Wqkv", "attention.qkv"),  # MPT
        ("attn.attention.out_proj", "attention.o"),  # GPT-Neo
        ("ffn.down_proj", "mlp.down"),
        ("fc1", "mlp.up"),  # OPT
        ("attention.q_lin", "attention.q"),  # DistilBERT
        ("ffn.lin2", "mlp.down"),
        ("attention.wqkv", "attention.qkv"),  # InternLM2
        ("attention.wo", "attention.o"),
        ("feed_forward.w1", "mlp.gate"),
        ("feed_forward.w2", "mlp.down"),
        ("encoder_attn.v_proj", "cross_attention.v"),  # Whisper, BART
        ("block_sparse_moe.experts.3.w3", "experts.up"),  # Mixtral, unfused
        ("mlp.shared_expert.gate_proj", "shared_experts.gate"),  # Qwen2-MoE
        ("layer.1.DenseReluDense.wi_0", "mlp.gate"),  # T5 v1.1
        ("mixer.in_proj", "mixer.in_proj"),  # Mamba: no counterpart in a transformer
        ("mlp.shared_expert_gate", "mlp.shared_expert_gate"),
    ],
)
def test_spellings_of_other_networks(kind: str, role: str) -> None:
    assert role_of(layer(kind)) == role


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        ("embed_out", "head"),
        ("score", "head"),
        ("classifier.out_proj", "head"),
        ("lm_head.dense", "head.transform"),
        ("model.decoder.project_in", "model.decoder.project_in"),
        ("bert.pooler.dense", "bert.pooler.dense"),
    ],
)
def test_layers_outside_the_blocks(kind: str, role: str) -> None:
    assert role_of(layer(kind, block=None)) == role


QKV = ("attention.q", "attention.k", "attention.v", "attention.o")


@pytest.mark.parametrize(
    ("role", "present", "expected"),
    [
        ("attention.q", QKV, (("attention.q",),)),
        ("attention.qkv", QKV, (("attention.q",), ("attention.k",), ("attention.v",))),
        ("attention.qkv", ("attention.q", "attention.kv"), (("attention.q",), ("attention.kv",), ("attention.kv",))),
        ("attention.kv_down", QKV, (("attention.k",), ("attention.v",))),
        ("attention.k", ("attention.qkv", "attention.o"), (("attention.qkv",),)),
        ("attention.q", ("attention.q_down", "attention.q_up"), (("attention.q_down", "attention.q_up"),)),
        ("attention.o", ("attention.qkv",), ()),
        ("cross_attention.v", QKV, (("attention.v",),)),
        ("mlp.gate_up", ("mlp.gate", "mlp.up"), (("mlp.gate",), ("mlp.up",))),
        ("mlp.gate", ("mlp.up", "mlp.down"), (("mlp.up",),)),
        ("mlp.gate", ("mlp.gate_up", "mlp.up"), (("mlp.gate_up",),)),
        ("mlp.down", ("experts.down", "shared_experts.down"), (("experts.down",),)),
        ("experts.gate_up", ("mlp.up", "mlp.down"), (("mlp.up",),)),
        ("head.transform", ("head",), (("head",),)),
        ("head", ("attention.q",), ()),
        ("mixer.in_proj", QKV, ()),
    ],
)
def test_which_roles_stand_for_which(role: str, present: tuple[str, ...], expected: tuple) -> None:
    assert stand_ins(role, present) == expected
