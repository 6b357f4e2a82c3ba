"""The order in which a network computes, which is not always the order in which its constructor names things."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from keylayers.layers.layer import Layer
from keylayers.layers.structure import inner_module, uncompiled, unwrap, walk


def in_forward_order(layers: Sequence[Layer], blocks: Sequence[str], visits: Mapping[str, int]) -> tuple[Layer, ...]:
    """Layers block by block, and within blocks as their kinds were first called in the block's stack.

    What was never called follows its predecessor in ownership order; layers outside the blocks come before the block
    that runs after them. `layers` come in ownership order.
    """
    first: dict[tuple[str, str], int] = {}
    for layer in layers:
        when = _first_visit(layer, visits)
        if layer.block is not None and when is not None:
            first.setdefault((_stack(blocks[layer.block]), layer.kind), when)
    keys: dict[str, tuple[int, int, int, int]] = {}
    latest: dict[int, int] = {}
    first_inside = next((i for i, layer in enumerate(layers) if layer.block is not None), 0)
    for position, layer in enumerate(layers):
        if layer.block is not None:
            order = first.get((_stack(blocks[layer.block]), layer.kind), latest.get(layer.block, -1))
            latest[layer.block] = order
            keys[layer.name] = (layer.block, 1, order, position)
        else:
            keys[layer.name] = _outside_key(_first_visit(layer, visits), position, first_inside, blocks, visits)
    return tuple(sorted(layers, key=lambda layer: keys[layer.name]))


def _outside_key(
    when: int | None, position: int, first_inside: int, blocks: Sequence[str], visits: Mapping[str, int]
) -> tuple[int, int, int, int]:
    if when is None:
        return (0 if position < first_inside else len(blocks)), 0, position, position
    return sum(visits.get(block, when) < when for block in blocks), 0, when, position


def _stack(block: str) -> str:
    return block.rpartition(".")[0]


def _first_visit(layer: Layer, visits: Mapping[str, int]) -> int | None:
    """When the layer's module was first called; a layer that is itself a parameter counts with its module."""
    name = layer.name.split("[")[0].split("+")[0]
    return visits.get(name.rpartition(".")[0] if name in layer.parameters else name)


def visit_order(model: nn.Module, example: Mapping[str, Tensor] | None = None) -> dict[str, int]:
    """Order in which modules are first called, from one forward on the meta device: no arithmetic, no memory.

    Empty where no example can be made; partial where the forward needs real numbers (sparse expert dispatch), which
    is enough: blocks of a stack repeat each other. Hugging Face models are not touched: a twin without weights runs.
    """
    root = inner_module(unwrap(model))
    example = example or example_inputs(root)
    if example is None:
        return {}
    config: Any = getattr(root, "config", None)
    key = (type(root), config.to_json_string(), *example) if hasattr(config, "to_json_string") else None
    if key in _KNOWN:
        return _KNOWN[key]
    order: dict[str, int] = {}
    with suppress(Exception), ExitStack() as stack:  # whatever a model needs beyond shapes, what was seen stands
        network, _, run = stack.enter_context(shape_pass(model, example))
        for node in walk(network):

            def note(module: nn.Module, args: object, name: str = node.name) -> None:
                order.setdefault(name, len(order))

            stack.callback(node.module.register_forward_pre_hook(note).remove)
        run()
    if key is not None:
        _KNOWN[key] = order
    return order


_KNOWN: dict[tuple | None, dict[str, int]] = {}
"""Orders already found, by what decides them: class, configuration, names of inputs."""


@contextmanager
def shape_pass(
    model: nn.Module, example: Mapping[str, Tensor]
) -> Iterator[tuple[nn.Module, Mapping[str, Tensor], Callable[[], object]]]:
    """The network to hook, its tensors by name, and a function that runs it on the meta device: shapes alone.

    A Hugging Face model is not touched: its twin without weights runs. Random state and the model's tensors stay.
    """
    root = inner_module(unwrap(model))
    with torch.random.fork_rng(devices=[]), torch.no_grad(), uncompiled(model):
        twin, inputs = _twin(root), {key: value.to("meta") for key, value in example.items()}
        if twin is not None:
            yield twin, dict(twin.named_parameters()), lambda: twin(**inputs)
        else:
            meta = _on_meta(root)
            yield model, meta, lambda: torch.func.functional_call(root, meta, kwargs=inputs, tie_weights=False)


def _twin(root: nn.Module) -> nn.Module | None:
    """The same Hugging Face network on the meta device, without wrappers, quantisation or training state; else None."""
    config = getattr(root, "config", None)
    if not hasattr(config, "model_type"):
        return None
    with torch.device("meta"):
        return type(root)(copy.deepcopy(config)).eval()


def _on_meta(root: nn.Module) -> dict[str, Tensor]:
    """Every tensor's shape on the meta device; tied tensors stay one tensor, so the map goes by identity."""
    tensors = dict(root.named_parameters(remove_duplicate=False)) | dict(root.named_buffers(remove_duplicate=False))
    meta = {id(tensor): tensor.detach().to("meta") for tensor in tensors.values()}
    return {name: meta[id(tensor)] for name, tensor in tensors.items()}


def example_inputs(model: nn.Module) -> dict[str, Tensor] | None:
    """The smallest input a Hugging Face model accepts, on the meta device; of another module its own `dummy_inputs`, or
    None where it has none."""
    main, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if main == "input_ids":
        ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
        decoder = {"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {}
        return {"input_ids": ids, **decoder}
    if main == "pixel_values":
        size = getattr(config, "image_size", 32)
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return {main: torch.zeros(1, getattr(config, "num_channels", 3), height, width, device="meta")}
    own = getattr(model, "dummy_inputs", None) if config is None else None
    return {key: value.to("meta") for key, value in own.items()} if isinstance(own, dict) else None
