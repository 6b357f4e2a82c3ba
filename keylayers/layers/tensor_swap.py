"""Other tensors in place of a model's own for a while; the model's tensors are never written."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.structure import tensors_of, walk


@contextmanager
def tensors_swapped(
    model: nn.Module, names: Iterable[str], alone: Container[str] = ()
) -> Iterator[Callable[[str, Tensor], None]]:
    """A function that puts a tensor in place of a named parameter or lasting buffer, wherever a tied one is used, or
    for names in `alone` in that one place; all undone at the end.

    Raises:
        UnknownName: if the model has no tensor of a name.
        BadInput: if one is stored quantised, so that no plain tensor can stand in for it.
    """
    names, own = list(names), tensors_of(model)
    for name in names:
        if name not in own:
            raise UnknownName("parameter", name, own)
        if not own[name].is_floating_point():
            raise BadInput(f"{name} is stored quantised; load the model without quantisation to change its weights.")
    everywhere = {id(own[name]): name for name in names if name not in alone}
    spots: dict[str, list[tuple[dict[str, Any], str]]] = {name: [] for name in names}
    for node in walk(model) if names else ():
        for table in (node.inner._parameters, node.inner._buffers):
            for key, value in table.items():
                here = f"{node.name}.{key}".removeprefix(".")
                if here in spots and here in alone:
                    spots[here].append((table, key))
                elif id(value) in everywhere:
                    spots[everywhere[id(value)]].append((table, key))

    def place(name: str, tensor: Tensor) -> None:
        for table, key in spots[name]:
            table[key] = tensor

    try:
        yield place
    finally:
        for name in names:
            place(name, own[name])


@contextmanager
def swapped(model: nn.Module, tensors: Mapping[str, Tensor], alone: Container[str] = ()) -> Iterator[nn.Module]:
    """The model with other tensors in place of named ones, until the block ends; see `placing`."""
    with tensors_swapped(model, tensors, alone) as place:
        for name, tensor in tensors.items():
            place(name, tensor)
        yield model


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with no parameter asking for gradients; every flag and gradient is put back."""
    training = [(module, module.training) for module in model.modules()]
    wanting = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _, _ in wanting:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag, gradient in wanting:
            parameter.requires_grad_(flag)
            parameter.grad = gradient
