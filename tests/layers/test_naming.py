import re
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.blocks import find_blocks, scalars
from keylayers.layers.layer import GRANULARITIES, Layer, layer_named, total_size
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import parameters_of
from tests.layers.helpers import TEXT_ARCHITECTURES_WITH_EXPERTS, forward_batch, full_state, logits, same_state
from tests.tiny_models import ALL, CAUSAL, SMALL, VISION, build, inputs

# By hand, from the configurations: blocks, sublayers, linear layers, experts, routers, convolutions, skips.
COUNTS = {
    "llama": (3, 6, 3 * 7 + 1, 0, 0, 0, 6),
    "llama-tied": (3, 6, 3 * 7, 0, 0, 0, 6),
    "mistral": (3, 6, 3 * 7 + 1, 0, 0, 0, 6),
    "qwen2": (3, 6, 3 * 7 + 1, 0, 0, 0, 6),
    "qwen3": (3, 6, 3 * 7 + 1, 0, 0, 0, 6),
    "gemma2": (3, 6, 3 * 7, 0, 0, 0, 6),
    "gemma3": (3, 6, 3 * 7, 0, 0, 0, 6),
    "phi3": (3, 6, 3 * 4 + 1, 0, 0, 0, 6),
    "gpt2": (3, 6, 3 * 4, 0, 0, 0, 6),
    "gpt-neox": (3, 6, 3 * 4 + 1, 0, 0, 0, 3),
    "gptj": (3, 6, 3 * 6 + 1, 0, 0, 0, 3),
    "olmo2": (3, 6, 3 * 7 + 1, 0, 0, 0, 6),
    "olmoe": (3, 6, 3 * (4 + 2) + 1, 3 * 4, 3, 0, 6),
    "qwen3-moe": (3, 6, 3 * (4 + 2) + 1, 3 * 4, 3, 0, 6),
    "mixtral": (3, 6, 3 * (4 + 2) + 1, 3 * 4, 3, 0, 6),
    "deepseek-v3": (3, 6, 3 * 5 + 3 + 2 * (2 + 3) + 1, 2 * 4, 2, 0, 6),
    "gpt-oss": (3, 6, 3 * (4 + 2) + 1, 3 * 4, 3, 0, 6),
    "t5": (2 + 2, 2 * 2 + 2 * 3, 2 * 6 + 2 * 10, 0, 0, 0, 10),
    "bert": (3, 6, 3 * 6 + 1, 0, 0, 0, 6),
    "vit": (3, 6, 3 * 6 + 1, 0, 0, 1, 6),
    "hf-resnet": (4, 0, 1, 0, 0, 1 + 4 * 2 + 1, 4),
    "cifar-resnet": (6, 0, 1, 0, 0, 1 + 6 * 2, 6),
}


def layers_or_none(model: nn.Module, granularity: str, **options: object) -> tuple[Layer, ...]:
    try:
        return named_layers(model, granularity, **options)
    except BadInput:
        return ()


def plain_linear(model: nn.Module) -> dict[str, int]:
    """Names and sizes of linear layers by class and by the names of routers, with no thought of structure."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    found = {}
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear | hf.pytorch_utils.Conv1D) and not name.endswith((".gate", ".router"))
        if linear and id(module.weight) not in embeddings:
            found[name] = sum(p.numel() for p in module.parameters(recurse=False))
        if name.endswith(".experts"):
            for key in ("gate_up_proj", "down_proj"):
                bias = getattr(module, f"{key}_bias", None)
                found[f"{name}.{key}"] = getattr(module, key).numel() + (0 if bias is None else bias.numel())
    return found


def plain_conv(model: nn.Module) -> dict[str, int]:
    return {
        name: sum(p.numel() for p in module.parameters())
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }


@pytest.mark.parametrize("name", ALL)
def test_counts_are_those_counted_by_hand(name: str) -> None:
    model = build(name)
    assert tuple(len(layers_or_none(model, granularity)) for granularity in GRANULARITIES) == COUNTS[name]
    assert set(COUNTS) == set(ALL)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("granularity", "walk"), [("linear", plain_linear), ("conv", plain_conv)])
def test_names_and_sizes_equal_a_plain_walk(name: str, granularity: str, walk: Callable) -> None:
    model = build(name)
    assert {layer.name: layer.size for layer in layers_or_none(model, granularity)} == walk(model)


@pytest.mark.parametrize("name", ALL)
def test_kinds_are_what_follows_the_block_index(name: str) -> None:
    for layer in (*layers_or_none(build(name), "linear"), *layers_or_none(build(name), "router")):
        inside = re.sub(r"^.*?(?:layers|h|block|encoder\.layer)\.\d+\.", "", layer.name)
        assert layer.kind == inside
        assert (layer.block is None) == (inside == layer.name)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("t5", "hf-resnet", "cifar-resnet")])
def test_block_index_is_the_number_in_the_name(name: str) -> None:
    for layer in named_layers(build(name), "linear"):
        numbers = re.findall(r"\.(\d+)\.", layer.name)
        assert layer.block == (int(numbers[0]) if numbers else None)


@pytest.mark.parametrize("name", ALL)
def test_layers_come_in_the_order_of_a_real_forward_pass(name: str) -> None:
    model, called = build(name), {}
    for module_name, module in model.named_modules():

        def note(module: nn.Module, args: object, module_name: str = module_name) -> None:
            called.setdefault(module_name, len(called))

        module.register_forward_pre_hook(note)
    example = forward_batch(name) if name == "cifar-resnet" else None
    with torch.no_grad():
        logits(model, forward_batch(name))
    for granularity in ("block", "linear", "conv", "router"):
        layers = layers_or_none(model, granularity, example=example)
        order = [called[layer.name if layer.name in called else layer.name.rpartition(".")[0]] for layer in layers]
        assert order == sorted(order), f"{granularity}: {[layer.name for layer in layers]}"


def test_an_order_found_once_is_not_given_to_another_configuration() -> None:
    for _ in range(2):
        for blocks in (1, 2):
            config = hf.Phi3Config(**{**SMALL, "num_hidden_layers": blocks})
            layers = named_layers(hf.Phi3ForCausalLM(config))
            assert len(layers) == 4 * blocks + 1 and layers[0].kind == "self_attn.qkv_proj"


def test_forward_order_is_not_ownership_order() -> None:
    owned = [name for name, _ in build("phi3").named_modules() if name.endswith("_proj")]
    assert owned[0].endswith("o_proj"), "the trap this test is about is gone"
    assert [layer.kind for layer in named_layers(build("phi3"))[:4]] == [
        "self_attn.qkv_proj",
        "self_attn.o_proj",
        "mlp.gate_up_proj",
        "mlp.down_proj",
    ]


class Backwards(nn.Module):
    """Owns its parts in the opposite order of their calls, with a linear map between two stages."""

    def __init__(self) -> None:
        super().__init__()

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + self.up(torch.relu(self.down(x)))

        self.head = nn.Linear(8, 3)
        self.between = nn.Linear(8, 8)
        self.first = nn.ModuleList([Block(), Block()])
        self.second = nn.ModuleList([Block(), Block()])
        self.embed = nn.Linear(2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.first:
            x = block(x)
        x = self.between(x)
        for block in self.second:
            x = block(x)
        return self.head(x)


def test_an_example_orders_networks_that_are_not_from_hugging_face() -> None:
    names = [layer.name for layer in named_layers(Backwards(), example={"x": torch.zeros(1, 2)})]
    blocks = [f"{stack}.{i}.{part}" for stack in ("first", "second") for i in (0, 1) for part in ("down", "up")]
    assert names == ["embed", *blocks[:4], "between", *blocks[4:], "head"]


def test_without_an_example_order_is_ownership_order() -> None:
    assert [layer.name for layer in named_layers(Backwards())][:3] == ["head", "between", "first.0.down"]


@pytest.mark.parametrize("name", ALL)
def test_blocks_own_disjoint_parameters_in_the_model(name: str) -> None:
    model = build(name)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    owned = [parameter for layer in named_layers(model, "block") for parameter in layer.parameters]
    assert len(owned) == len(set(owned))
    assert set(owned) <= set(parameters)
    for layer in named_layers(model, "block"):
        assert layer.kind == "block" and all(parameter.startswith(f"{layer.name}.") for parameter in layer.parameters)
        assert layer.size == sum(parameters[parameter].numel() for parameter in layer.parameters)


@pytest.mark.parametrize("name", ALL)
def test_layers_of_a_granularity_share_no_parameter(name: str) -> None:
    model = build(name)
    for granularity in ("sublayer", "linear", "expert", "router", "conv"):
        owned = [parameter for layer in layers_or_none(model, granularity) for parameter in layer.parameters]
        assert len(owned) == len(set(owned))


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES_WITH_EXPERTS)
def test_expert_slices_add_up_to_the_fused_layers(name: str) -> None:
    model = build(name)
    experts, linear = named_layers(model, "expert"), named_layers(model, "linear")
    for block in {layer.block for layer in experts}:
        fused = [layer for layer in linear if layer.block == block and ".experts." in layer.name]
        slices = [layer for layer in experts if layer.block == block]
        assert len(fused) == 2 and len(slices) == 4
        assert total_size(slices) == total_size(fused) > 0
        assert [layer.kind for layer in slices] == [f"mlp.experts[{index}]" for index in range(4)]


def test_expert_biases_belong_to_their_expert() -> None:
    fused = layer_named(named_layers(build("gpt-oss"), "linear"), "model.layers.1.mlp.experts.down_proj")
    assert fused.parameters == (
        "model.layers.1.mlp.experts.down_proj",
        "model.layers.1.mlp.experts.down_proj_bias",
    )
    expert = layer_named(named_layers(build("gpt-oss"), "expert"), "model.layers.1.mlp.experts[2]")
    assert "model.layers.1.mlp.experts.down_proj_bias[2]" in expert.parameters
    assert expert.size == 32 * 96 + 96 + 48 * 32 + 32


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES_WITH_EXPERTS)
def test_routers_are_no_linear_layers(name: str) -> None:
    model = build(name)
    routers = {layer.name for layer in named_layers(model, "router")}
    expected = {n for n, m in model.named_modules() if n.endswith((".gate", ".router")) and hasattr(m, "weight")}
    assert routers == expected
    assert not routers & {layer.name for layer in named_layers(model, "linear")}


class Mixture(nn.Module):
    """Experts as a plain list, as models before transformers 5 and most hand-written ones hold them."""

    def __init__(self) -> None:
        super().__init__()

        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.mix = nn.Linear(8, 8)
                self.gate = nn.Linear(8, 3, bias=False)
                self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 8)) for _ in range(3))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                x = x + self.mix(x)
                weights = self.gate(x).softmax(-1)
                return x + sum(weights[..., [i]] * expert(x) for i, expert in enumerate(self.experts))

        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_experts_in_a_list_are_experts_and_not_blocks() -> None:
    model, example = Mixture(), {"x": torch.zeros(1, 8)}
    assert find_blocks(model) == ("blocks.0", "blocks.1")
    assert [layer.name for layer in named_layers(model, "expert", example=example)] == [
        f"blocks.{block}.experts.{expert}" for block in range(2) for expert in range(3)
    ]
    assert [layer.name for layer in named_layers(model, "router")] == ["blocks.0.gate", "blocks.1.gate"]
    linear = [layer.kind for layer in named_layers(model, "linear", example=example)]
    assert Counter(linear)["mix"] == 2 and "gate" not in linear and "experts.2.1" in linear


@pytest.mark.parametrize("name", ["llama-tied", "gemma2", "gemma3", "gpt2", "bert", "t5"])
def test_a_tied_head_is_listed_only_when_asked_for(name: str) -> None:
    model = build(name)
    head = next(
        module_name
        for module_name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight is model.get_input_embeddings().weight
    )
    assert head not in {layer.name for layer in named_layers(model)}
    both = named_layers(model, tied=True)
    layer = layer_named(both, head)
    assert len(both) == COUNTS[name][2] + 1
    assert both[-1] == layer and layer.block is None
    assert parameters_of(model)[layer.tied_to] is model.get_input_embeddings().weight
    assert layer.tied_to != layer.parameters[0]


def test_an_untied_head_is_an_ordinary_layer() -> None:
    assert layer_named(named_layers(build("llama")), "lm_head").tied_to is None


def test_t5_counts_encoder_then_decoder_blocks() -> None:
    model = build("t5")
    assert find_blocks(model) == ("encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1")
    layers = {layer.name: layer.block for layer in named_layers(model)}
    assert layers["encoder.block.1.layer.0.SelfAttention.q"] == 1
    assert layers["decoder.block.0.layer.1.EncDecAttention.k"] == 2
    assert [layer.kind for layer in named_layers(model, "sublayer")] == ["layer.0", "layer.1"] * 2 + [
        "layer.0",
        "layer.1",
        "layer.2",
    ] * 2


def test_bert_joins_the_two_modules_of_its_mlp() -> None:
    layers = named_layers(build("bert"), "sublayer")
    assert [layer.kind for layer in layers] == ["attention", "intermediate+output"] * 3
    assert layers[1].name == "bert.encoder.layer.0.intermediate+output"
    assert {name.split(".")[4] for name in layers[1].parameters} == {"intermediate", "output"}
    assert total_size(layers) == total_size(named_layers(build("bert"), "block"))


@pytest.mark.parametrize("name", [name for name in CAUSAL])
def test_sublayers_hold_every_linear_layer_of_the_blocks(name: str) -> None:
    model = build(name)
    sublayers = named_layers(model, "sublayer")
    assert [layer.kind for layer in sublayers[:2]] in (["self_attn", "mlp"], ["attn", "mlp"], ["attention", "mlp"])
    owned = {parameter for layer in sublayers for parameter in layer.parameters}
    for layer in (*named_layers(model, "linear"), *layers_or_none(model, "router")):
        if layer.block is not None:
            assert set(layer.parameters) <= owned


def test_llama_2_7b_has_the_papers_225_layers() -> None:
    config = hf.LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    )
    with torch.device("meta"):
        layers = named_layers(hf.LlamaForCausalLM(config))
    assert len(layers) == 225 == 32 * 7 + 1
    assert total_size(layers) == 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 32000 * 4096


@pytest.mark.parametrize(
    ("blocks", "width", "mlp", "heads", "count"), [(32, 4096, 14336, 32, 225), (80, 8192, 28672, 64, 561)]
)
def test_shapes_of_8b_and_70b_are_listed_without_weights(
    blocks: int, width: int, mlp: int, heads: int, count: int
) -> None:
    import resource

    config = hf.LlamaConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(config)
    layers = named_layers(model)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000, "over 1 GB was used"
    assert len(layers) == count and layers[-1].name == "lm_head"
    assert all(parameter.is_meta for parameter in model.parameters())
    assert len(find_blocks(model)) == blocks


@pytest.mark.parametrize("name", ALL)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = build(name).train()
    next(model.parameters()).requires_grad_(False)
    next(model.children()).eval()
    before = full_state(model)
    for granularity in GRANULARITIES:
        layers_or_none(model, granularity, example=forward_batch(name))
    assert same_state(before, full_state(model))


def test_a_custom_network_is_left_as_it_was_even_if_its_forward_fails() -> None:
    model = Backwards().train()
    before = full_state(model)
    assert len(named_layers(model, example={"x": torch.zeros(1, 5)})) == 11  # 5 features where 2 are wanted
    assert same_state(before, full_state(model))


def test_a_vision_language_model_keeps_each_towers_order() -> None:
    text = hf.LlamaConfig(**SMALL)
    vision = hf.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    with torch.device("meta"):
        model = hf.LlavaForConditionalGeneration(hf.LlavaConfig(text_config=text, vision_config=vision))
    assert len(find_blocks(model)) == 2 + 3
    kinds = [layer.kind for layer in named_layers(model) if layer.block == 1]
    assert len(kinds) == 6 and kinds[-2:] == ["mlp.fc1", "mlp.fc2"]
    assert next(layer.name for layer in named_layers(model) if layer.block == 2).startswith("model.language_model.")


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_an_absent_granularity_is_refused_with_those_present(name: str) -> None:
    with pytest.raises(BadInput, match=r"no layer of granularity 'expert'; it has: block, sublayer, linear"):
        named_layers(build(name), "expert")


def test_an_unknown_granularity_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="did you mean 'sublayer'"):
        named_layers(build("llama"), "sublayers")


def test_a_network_without_layers_says_so() -> None:
    with pytest.raises(BadInput, match="it has: none"):
        named_layers(nn.ReLU())


def test_layer_named_offers_near_names() -> None:
    layers = named_layers(build("llama"))
    assert layer_named(layers, "model.layers.1.mlp.up_proj").block == 1
    with pytest.raises(UnknownName, match=r"model\.layers\.1\.mlp\.up_proj"):
        layer_named(layers, "layers.1.mlp.up_proj")


@pytest.mark.parametrize("name", list(VISION))
def test_vision_blocks(name: str) -> None:
    expected = {
        "vit": [f"vit.layers.{i}" for i in range(3)],
        "hf-resnet": [f"resnet.encoder.stages.{s}.layers.{i}" for s in range(2) for i in range(2)],
        "cifar-resnet": [f"layer{s}.{i}" for s in (1, 2, 3) for i in (0, 1)],
    }
    assert list(find_blocks(build(name))) == expected[name]


@pytest.mark.parametrize("name", ["llama", "olmoe"])
def test_sizes_are_the_models(name: str) -> None:
    model = build(name)
    whole = sum(parameter.numel() for parameter in model.parameters())
    norms_and_embeddings = sum(
        scalars(value) for key, value in parameters_of(model).items() if "norm" in key or "embed" in key
    )
    routers = total_size(layers_or_none(model, "router"))
    assert total_size(named_layers(model)) + norms_and_embeddings + routers == whole
    assert inputs(name)["input_ids"].shape == (2, 12)
