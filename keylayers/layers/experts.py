"""Mixtures of experts found by structure: modules that run in parallel, and the router that weighs them."""

from math import prod

from torch import nn
from torch.nn.modules.conv import _ConvNd

from keylayers.layers.structure import inner_module, logical_shape, walk


def is_expert_list(container: nn.Module, parent: nn.Module) -> bool:
    """Whether a list inside a block holds experts: feed-forward networks beside a router that weighs each of them.

    A list that lies in no block holds the blocks themselves, whatever else has as many rows as it has elements: an
    embedding, an output head.
    """
    if not isinstance(container, nn.ModuleList | nn.ModuleDict):
        return False
    experts = members(container)
    return all(map(_is_feed_forward, experts.values())) and bool(routers_beside(container, parent))


def members(container: nn.Module) -> dict[str, nn.Module]:
    """The experts of a list by key; a dropout that the list owns, too, is none."""
    held = {key: inner_module(child) for key, child in container.named_children()}
    return {key: module for key, module in held.items() if any(True for _ in module.parameters())}


def routers_beside(experts: nn.Module, parent: nn.Module) -> list[str]:
    """Names, below their common parent, of what weighs experts: the one matrix of a module beside them, with a row for
    each expert and as many columns as these take in. Where several are so shaped, those that are called a router."""
    count, widths = _count_and_widths(experts)
    names = []
    for key, sibling in parent.named_children():
        if inner_module(sibling) is experts or any(isinstance(node.inner, nn.Embedding) for node in walk(sibling)):
            continue
        matrices = [
            (node.name, logical_shape(value))
            for node in walk(sibling)
            for value in node.inner._parameters.values()
            if value is not None and len(logical_shape(value)) > 1 and prod(logical_shape(value)) > count  # no bias
        ]
        if len(matrices) == 1 and matrices[0][1] in {(count, width) for width in widths}:
            names.append(f"{key}.{matrices[0][0]}".removesuffix("."))
    return [name for name in names if "gate" in name or "router" in name] or names


def fused_keys(module: nn.Module) -> tuple[str, ...]:
    """Keys of the parameters of one module that hold several matrices: (experts, d_out, d_in), or those of heads."""
    if isinstance(module, _ConvNd | nn.Embedding):
        return ()
    return tuple(
        key
        for key, value in module._parameters.items()
        if value is not None and len(logical_shape(value)) == 3 and logical_shape(value)[0] > 1
    )


def holds_experts(name: str, module: nn.Module, parent: nn.Module) -> bool:
    """Whether the matrices that one module holds fused are experts: there is a router, or they are called so."""
    called = f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
    return "expert" in called or bool(routers_beside(module, parent))


def _count_and_widths(experts: nn.Module) -> tuple[int, set[int]]:
    """Number of experts, and the sizes that all of them could take in."""
    if isinstance(experts, nn.ModuleList | nn.ModuleDict):
        widths = [
            {logical_shape(value)[1] for value in expert.parameters() if len(logical_shape(value)) == 2}
            for expert in members(experts).values()
        ]
        return len(widths), set.intersection(*widths) if widths else set()
    shapes = [logical_shape(experts._parameters[key]) for key in fused_keys(experts)]  # type: ignore[arg-type]
    return shapes[0][0], {width for shape in shapes for width in shape[1:]}  # d_in comes first or last


def _is_feed_forward(expert: nn.Module) -> bool:
    """Whether it only multiplies: at least one matrix, and no attention, convolution or normalisation."""
    shapes = []
    for node in walk(expert):
        called = type(node.inner).__name__.lower()
        weight = node.inner._parameters.get("weight")
        scales = weight is not None and len(logical_shape(weight)) == 1  # a norm of another name
        if scales or isinstance(node.inner, _ConvNd) or any(word in called for word in ("attention", "attn", "norm")):
            return False
        shapes += [len(logical_shape(value)) for value in node.inner._parameters.values() if value is not None]
    return 2 in shapes
