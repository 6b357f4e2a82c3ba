"""Gradients of layers' weights, each handed over and freed as soon as it appears."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.structure import first_names, parameters_of
from keylayers.layers.tensor_swap import swapped

Take = Callable[[int, str, Tensor], None]
"""(place of the layer, parameter or slice `name[3]` of one, its gradient)."""


def parts_of(model: nn.Module, layers: Sequence[Layer]) -> dict[str, list[tuple[int, str, int | None]]]:
    """Parameter -> which layers hold it: (place of the layer, the name it has there, slice or None for all of it).

    Raises:
        BadInput: if two layers hold the same parameter.
    """
    first, owner = first_names(model), dict[tuple[str, int | None], str]()
    found: dict[str, list[tuple[int, str, int | None]]] = {}
    for place, layer in enumerate(layers):
        for name in layer.parameters:
            whole, bracket, index = name.partition("[")
            part = int(index.removesuffix("]")) if bracket else None
            other = owner.setdefault((first[whole], part), layer.name)
            if other != layer.name:
                raise BadInput(f"layers {other!r} and {layer.name!r} share {name}; leave one out, or list blocks.")
            found.setdefault(first[whole], []).append((place, name, part))
    return found


@contextmanager
def streamed_gradients(model: nn.Module, layers: Sequence[Layer], take: Take) -> Iterator[nn.Module]:
    """Within the block, every backward pass hands each layer's gradients to `take`, one tensor at a time.

    The model's own parameters are left alone: their values stand in as leaves of their own, without a copy. Call
    inside `frozen(model)`. Memory: what the backward pass keeps, and one gradient. A parameter that took no part (an
    expert to which no token came) is not handed over.

    Raises:
        BadInput: if a weight is stored quantised, or two layers hold the same parameter.
    """
    own = parameters_of(model)
    leaves: dict[str, Tensor] = {}
    for name, parts in parts_of(model, layers).items():
        leaf = own[name].detach()
        if leaf.is_floating_point():
            leaf.requires_grad_().register_post_accumulate_grad_hook(_handing(parts, take))
        leaves[name] = leaf
    with torch.enable_grad(), swapped(model, leaves):
        yield model


def _handing(parts: Sequence[tuple[int, str, int | None]], take: Take) -> Callable[[Tensor], None]:
    def hand(leaf: Tensor) -> None:
        gradient, leaf.grad = leaf.grad, None
        assert gradient is not None
        for place, name, part in parts:
            take(place, name, gradient if part is None else gradient[part])

    return hand


def weight_norms(model: nn.Module, layers: Sequence[Layer]) -> list[float]:
    """Frobenius norm of all parameters of each layer.

    Raises:
        BadInput: if a weight is stored quantised.
    """
    own: Mapping[str, Tensor] = parameters_of(model)
    squares = [0.0] * len(layers)
    for whole, parts in parts_of(model, layers).items():
        weight = own[whole].detach()
        if not weight.is_floating_point():
            raise BadInput(f"{whole} is stored quantised; load the model without quantisation.")
        for place, _, part in parts:
            squares[place] += float((weight if part is None else weight[part]).double().square().sum())
    return [square**0.5 for square in squares]
