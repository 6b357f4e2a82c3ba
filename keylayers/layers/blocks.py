"""Residual blocks found by structure: the repeated composite elements of a network's lists, in forward order."""

from math import prod

from torch import Tensor, nn

from keylayers.layers.structure import inner_module, logical_shape, unwrap, walk


def find_blocks(model: nn.Module) -> tuple[str, ...]:
    """Unwrapped names of the residual blocks, counted over all stacks (encoder then decoder, stage after stage)."""
    return tuple(_blocks("", unwrap(model), least=1))


def _blocks(name: str, module: nn.Module, least: int) -> list[str]:
    inner, found = inner_module(module), []
    for key, child in inner.named_children():
        place, held = f"{name}.{key}".removeprefix("."), inner_module(child)
        if is_stack(held, inner, least):
            for index, element in held.named_children():
                # A stage is a block-like element that itself holds a stack: its elements are the blocks.
                found += _blocks(f"{place}.{index}", element, least=2) or [f"{place}.{index}"]
        else:
            found += _blocks(place, child, least)
    return found


def is_stack(container: nn.Module, parent: nn.Module, least: int = 1) -> bool:
    """Whether a list's elements are residual blocks: composite, of repeating classes, run in turn, not in parallel."""
    if not isinstance(container, nn.ModuleList | nn.Sequential) or len(container) < least:
        return False
    elements = [inner_module(child) for child in container.children()]
    composite = all(_weights(element) >= 2 for element in elements)
    repeating = len({type(element) for element in elements}) < max(len(elements), 2)
    return composite and repeating and not is_expert_list(container, parent)


def is_expert_list(container: nn.Module, parent: nn.Module) -> bool:
    """Whether a list runs in parallel under a router: a sibling maps to exactly as many outputs as it has elements."""
    return isinstance(container, nn.ModuleList) and any(
        logical_shape(weight)[:1] == (len(container),) and len(logical_shape(weight)) == 2
        for sibling in parent.children()
        if isinstance(weight := inner_module(sibling)._parameters.get("weight"), Tensor)
    )


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
