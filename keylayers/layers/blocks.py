"""Residual blocks found by structure: the repeated composite elements of a network's lists, in forward order."""

from math import prod

from torch import Tensor, nn

from keylayers.layers.experts import is_expert_list
from keylayers.layers.structure import inner_module, logical_shape, unwrap, walk


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Unwrapped names of the residual blocks, counted over all stacks (encoder then decoder, stage after stage)."""
    return tuple(_blocks("", unwrap(model), inside=False))


def _blocks(name: str, module: nn.Module, inside: bool) -> list[str]:
    """`inside`: of an element of a list. Only there can experts lie, and one element alone is no stack."""
    inner, blocks = inner_module(module), list[str]()
    stacks = {
        key: held for key, child in inner.named_children() if _is_stack_of(held := inner_module(child), inner, inside)
    }
    if inside and len(stacks) > 1:  # they run by turns, and only together are a step of the stream
        return []
    for key, child in inner.named_children():
        place = f"{name}.{key}".removeprefix(".")
        if key in stacks:
            for index, element in stacks[key].named_children():
                # A stage is a block-like element that itself holds a stack: its elements are the blocks.
                blocks += _blocks(f"{place}.{index}", element, inside=True) or [f"{place}.{index}"]
        elif not (inside and is_expert_list(inner_module(child), inner)):
            blocks += _blocks(place, child, inside)
    return blocks


def _is_stack_of(held: nn.Module, parent: nn.Module, inside: bool) -> bool:
    return is_stack(held) and len(held) > inside and not (inside and is_expert_list(held, parent))  # type: ignore[arg-type]


def is_stack(container: nn.Module) -> bool:
    """Whether a list's elements are alike: composite and of repeating classes. Within a block they may be experts."""
    if not isinstance(container, nn.ModuleList | nn.Sequential) or len(container) == 0:
        return False
    elements = [inner_module(child) for child in container.children()]
    composite = all(_weights(element) >= 2 for element in elements)
    return composite and len({type(element) for element in elements}) < max(len(elements), 2)


def _weights(module: nn.Module) -> int:
    """Weight matrices, kernels or fused expert tensors below a module."""
    return sum(
        len(logical_shape(parameter)) >= 2
        for node in walk(module)
        if not isinstance(node.inner, nn.Embedding)
        for parameter in node.inner._parameters.values()
        if parameter is not None
    )


def scalars(parameter: Tensor) -> int:
    """Number of scalars in a parameter, before quantisation."""
    return prod(logical_shape(parameter))
