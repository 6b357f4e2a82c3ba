"""What a layer does, whatever its network calls it: the canonical role of a layer, and which roles stand for others.

A role is a place in the block and a part of it (`attention.q`, `experts.down`), or the place alone where a layer is a
whole sublayer, expert or block. What the small vocabulary below does not know keeps its kind as its role.
"""

import re
from collections.abc import Collection

from keylayers.layers.layer import Layer

CROSS = {"encdecattention", "encoder_attn", "crossattention", "cross_attn", "cross_attention"}
SHARED = {"shared_expert", "shared_experts", "shared_mlp"}
ROUTERS = {"router", "gate"}  # a bare `gate` is a router in transformers; the gated mlp's is `gate_proj` or `w1`
HEADS = {"lm_head", "head", "heads", "classifier", "score", "cls"}  # anywhere in the name of a layer outside the blocks
HEAD_ENDS = {"embed_out", "fc", "linear", "decoder", "output", "logits", "proj_out"}  # at its end

ATTENTION_PARTS = {
    "q": "q q_proj query wq q_lin query_proj",
    "k": "k k_proj key wk k_lin key_proj",
    "v": "v v_proj value wv v_lin value_proj",
    "kv": "kv kv_proj",
    "qkv": "c_attn query_key_value qkv_proj qkv wqkv",
    "q_down": "q_a_proj",
    "q_up": "q_b_proj",
    "kv_down": "kv_a_proj_with_mqa kv_a_proj",
    "kv_up": "kv_b_proj",
    "o": "o o_proj out_proj wo dense c_proj out_lin proj",
}
"""Last word of the kind, in an attention module. The `_down` and `_up` are the factors of low-rank attention (MLA)."""

MLP_PARTS = {
    "gate": "gate_proj w1 wi_0",
    "up": "up_proj w3 wi_1 wi c_fc fc1 fc_in lin1 dense_h_to_4h intermediate.dense",
    "gate_up": "gate_up_proj",
    "down": "down_proj w2 wo c_proj fc2 fc_out lin2 dense_4h_to_h output.dense",
}
"""Last word of the kind, or last two, in any other module of a block. A network without a gate has `up` alone."""

COVERS = {
    "qkv": ("q", "k", "v"),
    "kv": ("k", "v"),
    "kv_down": ("k", "v"),
    "kv_up": ("k", "v"),
    "q_down": ("q",),
    "q_up": ("q",),
    "gate_up": ("gate", "up"),
}
"""Elementary parts in a fused or factored matrix; every other part covers itself."""

SUBSTITUTES = {"gate": "up", "up": "gate", "transform": ""}
"""Where neither a part nor a matrix that covers it exists: both halves of a gated mlp read the same input."""

RELATED = {
    "cross_attention": ("attention",),
    "attention": ("cross_attention",),
    "experts": ("mlp", "shared_experts"),
    "shared_experts": ("mlp", "experts"),
    "mlp": ("experts", "shared_experts"),
    "expert": ("mlp",),
}
"""Places that stand for another, in this order, where a block does not have it."""


def role_of(layer: Layer) -> str:
    """Canonical role: `attention.q|k|v|kv|qkv|o`, `mlp|experts|shared_experts.gate|up|gate_up|down`, `head`, ...

    Whole sublayers and blocks are `attention`, `cross_attention`, `mlp`, `expert`, `block`; unknown layers their kind.
    """
    words = layer.kind.lower().split(".")
    if layer.kind == "block":
        return "block"
    if layer.block is None:
        return _role_outside(words) or layer.kind
    if not _is_matrix(layer):
        return _role_of_module(layer, words)
    place = _place(words[:-1])
    if "attention" in place:
        part = _part(words, ATTENTION_PARTS)
        return f"{place}.{part}" if part else layer.kind
    if words[-1] in ROUTERS:
        return "router"
    part = _part(words, MLP_PARTS)
    return f"{place}.{part}" if part else layer.kind


def stand_ins(role: str, present: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """Which of the roles present in a block stand for a role: groups whose means are averaged; empty if none does.

    In this order: the role itself; what covers its parts (q, k and v for a fused qkv, and the reverse); the other half
    of a gated mlp; the same in a related place (experts for an mlp, self-attention for cross-attention).
    """
    if role in present:
        return ((role,),)
    place, _, part = role.partition(".")
    for where in (place, *RELATED.get(place, ())):
        for what in (part, *([SUBSTITUTES[part]] if part in SUBSTITUTES else [])):
            if groups := _covering(where, what, present):
                return groups
    return ()


def _covering(place: str, part: str, present: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """The role itself, else one group per elementary part: the roles of the same place that cover it."""
    whole = f"{place}.{part}" if part else place
    if whole in present:
        return ((whole,),)
    groups = (
        tuple(
            role
            for role in (f"{place}.{other}" for other in (*ATTENTION_PARTS, *MLP_PARTS))
            if role in present and elementary in COVERS.get(role.partition(".")[2], (role.partition(".")[2],))
        )
        for elementary in COVERS.get(part, (part,))
    )
    return tuple(group for group in groups if group)


def _is_matrix(layer: Layer) -> bool:
    """Whether a layer is one weight (and bias): a linear map, a convolution, a fused tensor of experts."""
    own = (layer.name, f"{layer.name}_bias")
    return all(name in own or name.rpartition(".")[0] == layer.name for name in layer.parameters)


def _role_outside(words: list[str]) -> str:
    if not HEADS & set(words) and words[-1] not in HEAD_ENDS:
        return ""
    return "head.transform" if words[-1] == "dense" else "head"  # BERT's and RoBERTa's dense map before the head


def _role_of_module(layer: Layer, words: list[str]) -> str:
    if layer.kind.endswith("]") or re.search(r"experts\.\d+$", layer.kind):
        return "expert"
    prefix = layer.name.removesuffix(layer.kind)  # T5 calls its sublayers by numbers: their parameters tell
    inside = [name.removeprefix(prefix).lower().split(".") for name in layer.parameters]
    found = {_place(words)} | {_place(path) for path in inside}
    return next((place for place in ("cross_attention", "attention") if place in found), "mlp")


def _place(words: Collection[str]) -> str:
    if CROSS & set(words):
        return "cross_attention"
    if any("attn" in word or "attention" in word for word in words):
        return "attention"
    if SHARED & set(words):
        return "shared_experts"
    return "experts" if "experts" in words else "mlp"


def _part(words: list[str], parts: dict[str, str]) -> str:
    """The part whose spellings hold the last two words, or the last; empty if none does."""
    spelled = {word: part for part, spellings in parts.items() for word in spellings.split()}
    return spelled.get(".".join(words[-2:])) or spelled.get(words[-1], "")
