import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.capturing import capture
from keylayers.layers.intervene import replaced, scaled, skipped
from keylayers.layers.naming import named_layers
from tests.layers.helpers import forward_batch, full_state, logits, same_state
from tests.layers.test_capture import Awkward
from tests.tiny_models import ALL, CAUSAL, build

PRE_NORM = [name for name in CAUSAL if name not in ("gemma2", "gemma3", "olmo2")]


def same_shape_blocks(model: nn.Module, batch: dict) -> list[str]:
    """Blocks whose output has their input's shape, in forward order."""
    names = [layer.name for layer in named_layers(model, "block")]
    with torch.no_grad(), capture(model, names) as seen:
        logits(model, batch)
    return [name for name in names if seen.inputs[name].shape == seen.outputs[name].shape]


class Identity(nn.Module):
    """A block that hands its hidden states on, with whatever else blocks of the architecture return."""

    def __init__(self, block: nn.Module, extra: tuple | None) -> None:
        super().__init__()
        self.extra = extra
        for name, value in vars(block).items():
            if not name.startswith("_") and isinstance(value, str | bool | int):
                setattr(self, name, value)  # attention types that the model reads

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> object:
        return hidden_states if self.extra is None else (hidden_states, *self.extra)


@pytest.mark.parametrize("name", ALL)
def test_skipping_a_block_equals_an_identity_in_its_place(name: str) -> None:
    model, batch = build(name), forward_batch(name)
    for block in same_shape_blocks(model, batch)[1:]:
        outputs: list = []
        handle = model.get_submodule(block).register_forward_hook(lambda m, args, out, o=outputs: o.append(out))
        with torch.no_grad():
            native = logits(model, batch)
            handle.remove()
            with skipped(model, [block]):
                result = logits(model, batch)
        extra = outputs[0][1:] if isinstance(outputs[0], tuple) else None
        parent, _, key = block.rpartition(".")
        original = model.get_submodule(block)
        model.get_submodule(parent)._modules[key] = Identity(original, extra)
        with torch.no_grad():
            expected = logits(model, batch)
        model.get_submodule(parent)._modules[key] = original
        assert torch.equal(result, expected)
        assert not torch.equal(result, native)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "bert", "vit"])
def test_skipping_the_last_block_equals_a_shorter_model(name: str) -> None:
    model, batch = build(name), forward_batch(name)
    layers = named_layers(model, "block")
    with torch.no_grad(), skipped(model, layers[-1:]):
        result = logits(model, batch)
    parent = model.get_submodule(layers[-1].name.rpartition(".")[0])
    del parent[len(parent) - 1]
    model.config.num_hidden_layers = 2
    with torch.no_grad():
        assert torch.equal(logits(model, batch), result)


@pytest.mark.parametrize("name", ALL)
def test_scaling_by_one_changes_no_bit(name: str) -> None:
    model, batch = build(name), forward_batch(name)
    with torch.no_grad():
        native = logits(model, batch)
        with scaled(model, named_layers(model, "block"), 1.0):
            assert torch.equal(logits(model, batch), native)


@pytest.mark.parametrize("name", PRE_NORM)
@pytest.mark.parametrize("part", [0, 1])
def test_silencing_a_sublayer_equals_the_block_without_it(name: str, part: int) -> None:
    """Against zeroed output weights, which is the same thing where nothing stands between them and the residual."""
    model, batch = build(name), forward_batch(name)
    layer = [layer for layer in named_layers(model, "sublayer") if layer.block == 1][part]
    with torch.no_grad(), scaled(model, [layer], 0.0):
        result = logits(model, batch)
        native_shape = result.shape
    ends = ("o_proj", "out_proj", "c_proj", "dense", "dense_4h_to_h", "down_proj", "fc_out")
    with torch.no_grad():
        for parameter_name in layer.parameters:
            owner, _, key = parameter_name.rpartition(".")
            last = (owner if key in ("weight", "bias") else parameter_name).rpartition(".")[2].removesuffix("_bias")
            if last in ends:
                model.get_parameter(parameter_name).zero_()
        assert torch.allclose(logits(model, batch), result, atol=1e-5)
    assert native_shape == result.shape


@given(scale=st.floats(-2, 2, width=32))
def test_scaling_multiplies_the_output(scale: float) -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), torch.ones(1, 3)
    with torch.no_grad(), scaled(model, ["0"], scale):
        result = model(x)
    assert torch.allclose(result, model[1](model[0](x) * scale))


def test_t5_sublayers_add_their_residual_so_skipping_is_the_identity() -> None:
    model, batch = build("t5"), forward_batch("t5")
    layer = next(layer for layer in named_layers(model, "sublayer") if layer.kind == "layer.1")  # the encoder's mlp
    with torch.no_grad(), skipped(model, [layer]):
        result = logits(model, batch)
    with torch.no_grad():
        model.encoder.block[0].layer[1].DenseReluDense.wo.weight.zero_()
        assert torch.equal(logits(model, batch), result)


@pytest.mark.parametrize("layer", ["keyword", "named", "dict"])
def test_other_members_of_an_output_stay_and_its_type_too(layer: str) -> None:
    model, x = Awkward(), torch.randn(2, 4)
    outputs: list = []
    with torch.no_grad(), replaced(model, {layer: lambda before, after: before * 10}):
        handle = model.get_submodule(layer).register_forward_hook(lambda m, args, out: outputs.append(out))
        model(x)
        handle.remove()
        with capture(model, [layer]) as seen:
            model(x)
    assert torch.equal(seen.outputs[layer], seen.inputs[layer] * 10)
    kind = type(outputs[0])
    assert kind.__name__ == {"keyword": "tuple", "named": "Pair", "dict": "dict"}[layer]
    if layer == "keyword":
        assert outputs[0][0] is None and torch.equal(outputs[0][2], torch.ones(4))
    elif layer == "named":
        assert outputs[0].extra == "kept"
    else:
        assert outputs[0]["note"] == 3


def test_model_outputs_of_transformers_keep_their_type() -> None:
    model, batch = build("llama"), forward_batch("llama")
    with torch.no_grad(), replaced(model, {"model": lambda before, after: after * 0}):
        out = model(**batch)
    assert type(out).__name__ == "CausalLMOutputWithPast" and not out.logits.any()


def test_changes_nest_and_come_in_the_order_given() -> None:
    model, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)
    with torch.no_grad():
        native = model(x)
        with scaled(model, ["0"], 2.0), replaced(model, {"0": lambda before, after: after + 1}):
            assert torch.allclose(model(x), native * 2 + 1)
        assert torch.equal(model(x), native)


def test_gradients_flow_through_a_scale() -> None:
    model, by = build("llama"), torch.tensor(1.0, requires_grad=True)
    with scaled(model, ["model.layers.1"], by):
        logits(model, forward_batch("llama")).sum().backward()
    assert by.grad is not None and torch.isfinite(by.grad)


def test_a_block_that_changes_the_shape_cannot_be_skipped() -> None:
    model = build("cifar-resnet")
    with (
        torch.no_grad(),
        pytest.raises(BadInput, match=r"'layer2\.0' returns shape \(2, 16, 16, 16\).*has \(2, 8, 32, 32\)"),
        skipped(model, ["layer2.0"]),
    ):
        logits(model, forward_batch("cifar-resnet"))


@pytest.mark.parametrize("ending", ["normal", "body", "change", "unknown"])
def test_everything_is_undone(ending: str) -> None:
    model, batch = build("gpt2"), forward_batch("gpt2")
    before = full_state(model)
    with torch.no_grad():
        native = logits(model, batch)

    def change(hidden: Tensor, out: Tensor) -> Tensor:
        if ending == "change":
            raise KeyError("mine")
        return out * 2

    def run() -> None:
        with (
            torch.no_grad(),
            replaced(model, {"transformer.h.1" if ending != "unknown" else "transformer.i.1": change}),
        ):
            assert not torch.equal(logits(model, batch), native)
            if ending == "body":
                raise KeyError("mine")

    if ending == "normal":
        run()
    else:
        with pytest.raises(UnknownName if ending == "unknown" else KeyError):
            run()
    assert same_state(before, full_state(model))
    with torch.no_grad():
        assert torch.equal(logits(model, batch), native)
