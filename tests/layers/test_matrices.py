"""Weight matrices of layers: which there are, in what shape, and that one at a time is read."""

import pytest
import torch

from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.tensors import TensorSource, tensors_in_memory
from keylayers.layers.weight_matrices import matrices
from tests.tiny_models import build


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3", "olmoe", "gpt-oss", "bert", "cifar-resnet"])
@pytest.mark.parametrize("granularity", ["block", "linear", "conv", "expert"])
def test_every_weight_is_there_once_and_no_bias_or_norm(name: str, granularity: str) -> None:
    model = build(name)
    try:
        layers = named_layers(model, granularity)
    except BadInput:
        return
    source = tensors_in_memory(model)
    for layer in layers:
        found = list(matrices(source, layer))
        scalars = sum(_scalars(source, one) for one in layer.parameters)
        assert sum(one.shape[0] * one.shape[1] for one in found) == scalars, layer.name
        assert all(tuple(one.load().shape) == one.shape for one in found)


def _scalars(source: TensorSource, parameter: str) -> int:
    whole, bracket, _ = parameter.partition("[")
    shape = source.shapes[whole][1 if bracket else 0 :]
    return 0 if whole.endswith("bias") or len(shape) < 2 else torch.Size(shape).numel()


def test_a_fused_tensor_gives_its_experts_and_a_slice_its_own() -> None:
    model = build("olmoe")
    source = tensors_in_memory(model)
    fused = next(layer for layer in named_layers(model) if layer.kind == "mlp.experts.gate_up_proj")
    whole = model.get_parameter(fused.parameters[0])
    found = list(matrices(source, fused))
    assert [one.name for one in found] == [f"{fused.name}[{expert}]" for expert in range(4)]
    assert all(torch.equal(one.load(), whole[expert]) for expert, one in enumerate(found))
    third = named_layers(model, "expert")[2]
    assert torch.equal(next(matrices(source, third)).load(), whole[2])


def test_experts_that_are_stored_one_by_one_are_read_one_by_one() -> None:
    read: list[str] = []

    def loader(name: str):
        def load() -> torch.Tensor:
            read.append(name)
            return torch.ones(3, 4)

        return load

    names = [f"experts.up[{expert}]" for expert in range(3)]
    source = TensorSource({name: loader(name) for name in names}, dict.fromkeys(names, (3, 4)), "a test")
    found = matrices(source, Layer("experts.up", 0, "experts.up", ("experts.up", "experts.up_bias"), 36))
    assert read == []
    for number, one in enumerate(found):
        one.load()
        assert read == names[: number + 1]
    only = Layer("experts[1]", 0, "experts[1]", ("experts.up[1]",), 12)
    assert [one.name for one in matrices(source, only)] == ["experts.up[1]"]


def test_a_kernel_is_flattened_over_its_inputs() -> None:
    model = build("cifar-resnet")
    layer = named_layers(model, "conv")[1]
    kernel = model.get_parameter(layer.parameters[0])
    (found,) = matrices(tensors_in_memory(model), layer)
    assert torch.equal(found.load(), kernel.reshape(len(kernel), -1))


def test_what_is_missing_or_quantised_is_named() -> None:
    layer = Layer("head", None, "head", ("head.weight",), 12)
    with pytest.raises(BadInput, match=r"a test holds no head\.weight of layer head"):
        list(matrices(TensorSource({}, {}, "a test"), layer))
    packed = TensorSource(
        {"head.weight": lambda: torch.ones(3, 4, dtype=torch.int8)}, {"head.weight": (3, 4)}, "a test"
    )
    with pytest.raises(BadInput, match=r"head\.weight of layer head is stored quantised \(int8\)"):
        next(matrices(packed, layer)).load()
