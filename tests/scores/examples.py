"""Layers and scores for these tests: a network of blocks with unequal modules, and hypothesis strategies over it."""

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from keylayers.layers.layer import Layer
from keylayers.scores import LayerScores, Provenance

KINDS = {"attn.q": 16, "attn.k": 4, "attn.v": 4, "attn.o": 16, "mlp.gate": 45, "mlp.up": 45, "mlp.down": 45}


def network(blocks: int, head: bool = True, kinds: dict[str, int] = KINDS) -> tuple[Layer, ...]:
    """`blocks` x 7 linear layers and a head: 32 blocks make the 225 layers of a 7B model."""
    layers = [
        Layer(f"layers.{b}.{kind}", b, kind, (f"layers.{b}.{kind}.weight",), size)
        for b in range(blocks)
        for kind, size in kinds.items()
    ]
    if head:
        layers.append(Layer("lm_head", None, "lm_head", ("lm_head.weight",), 131, tied_to="embed.weight"))
    return tuple(layers)


def scored(layers, values, **fields) -> LayerScores:
    return LayerScores(tuple(layers), values, "by_hand", "linear", **fields)


def noise(layers, seed: int = 0) -> LayerScores:
    return scored(layers, np.random.default_rng(seed).normal(size=len(layers)))


FULL = Provenance(
    model={"id": "some/model", "revision": "abc", "architecture": "LlamaForCausalLM", "parameters": 1234},
    data=({"id": "alpaca", "sha256": "00ff", "records": 830}, {"id": "gsm8k", "sha256": "11", "records": 2}),
    settings={"steps": 100, "rate": 0.01, "betas": [0.9, 0.999], "start": None, "nested": {"ü": True}},
    seed=3,
    versions={"torch": "2.13.0"},
    seconds=12.5,
    device="cpu",
)

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def score_sets(draw, most: int = 24, elements=None):
    """Scores over a small network; few distinct values, so that ties are common, but never one alone."""
    sizes = draw(
        st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.integers(1, 50)), min_size=2, max_size=most)
    )
    blocks = sorted(block for block, _, _ in sizes)
    layers = tuple(
        Layer(f"n{i}.{kind}", block, kind, (f"n{i}.w",), size)
        for i, (block, (_, kind, size)) in enumerate(zip(blocks, sizes, strict=True))
    )
    values = draw(
        st.lists(
            st.integers(-3, 3).map(float) if elements is None else elements, min_size=len(layers), max_size=len(layers)
        )
    )
    assume(len(set(values)) > 1)
    return scored(layers, values)
