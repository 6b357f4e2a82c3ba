"""Temporary changes to a network at its layers: skipped, scaled, replaced; all undone at the end of the block."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager

from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.capturing import first_tensor, hidden_input
from keylayers.layers.layer import Layer
from keylayers.layers.structure import modules_named, uncompiled

Change = Callable[[Tensor, Tensor], Tensor]
"""(hidden states in, hidden states out) -> the hidden states that leave instead."""


@contextmanager
def replaced(model: nn.Module, changes: Mapping[str, Change]) -> Iterator[nn.Module]:
    """The model with the outputs of named layers passed through functions; other members of tuple outputs stay.

    Raises:
        UnknownName: if a layer is not in the model.
        BadInput: if a layer is no module of its own, or a change does not keep the shape.
    """

    def hook_for(name: str, change: Change):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
            hidden = first_tensor(output)
            new = change(hidden_input(args, kwargs), hidden)
            if new.shape != hidden.shape:
                raise BadInput(
                    f"layer {name!r} returns shape {tuple(hidden.shape)}, but what should replace it has "
                    f"{tuple(new.shape)}; skip only layers whose input and output have one shape."
                )
            return with_first(output, new)

        return hook

    modules = modules_named(model, list(changes))
    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for (name, change), module in zip(changes.items(), modules, strict=True):
            stack.callback(module.register_forward_hook(hook_for(name, change), with_kwargs=True).remove)
        yield model


def skipped(model: nn.Module, layers: Iterable[Layer | str]) -> AbstractContextManager[nn.Module]:
    """The model with layers passing their input through: for layers that add their residual themselves (blocks, T5's
    sublayers), the identity."""
    return replaced(model, {_name(layer): lambda before, after: before for layer in layers})


def scaled(model: nn.Module, layers: Iterable[Layer | str], by: float | Tensor) -> AbstractContextManager[nn.Module]:
    """The model with layers' outputs multiplied; 1 changes nothing, 0 silences a sublayer whose output the block adds
    to the residual stream (attention and mlp of decoder models)."""
    return replaced(model, {_name(layer): lambda before, after: after * by for layer in layers})


def _name(layer: Layer | str) -> str:
    return layer if isinstance(layer, str) else layer.name


def with_first(output: object, tensor: Tensor) -> object:
    """A module's output with its first tensor exchanged, of the type it had."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, dict):  # transformers' ModelOutput
        key = next(key for key, value in output.items() if isinstance(value, Tensor))
        return type(output)(**{**output, key: tensor})
    members = list(output)  # type: ignore[call-overload]
    index = next(i for i, member in enumerate(members) if isinstance(member, Tensor))
    members[index] = tensor
    return type(output)(*members) if hasattr(output, "_fields") else type(output)(members)  # type: ignore[call-arg]
