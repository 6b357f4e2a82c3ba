"""Reading a network at its layers: inputs, outputs and gradients, as it runs."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.layers.structure import modules_named, uncompiled


class _Stop(Exception):
    """Ends a forward pass once everything asked for has been seen."""


@dataclass
class Captured:
    """What was seen, by layer name; the latest call of each layer counts."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """Hidden states entering the layer, whether passed by position or by keyword."""
    outputs: dict[str, Tensor] = field(default_factory=dict)
    """Hidden states leaving it: the tensor, or the first tensor of a tuple."""
    gradients: dict[str, Tensor] = field(default_factory=dict)
    """dLoss/d(output), present after a backward pass when gradients were asked for; frozen models included."""


def first_tensor(value: object) -> Tensor:
    """The hidden states in a module's output: itself, or the first tensor of a tuple. Raises BadInput without one."""
    if isinstance(value, Tensor):
        return value
    members = value.values() if isinstance(value, dict) else value
    if isinstance(members, Iterable):
        for member in members:
            if isinstance(member, Tensor):
                return member
    raise BadInput(f"a layer returned {type(value).__name__}, which holds no tensor to read or change.")


def hidden_input(args: tuple, kwargs: dict) -> Tensor:
    """The hidden states entering a module: the first tensor by position, else `hidden_states`, else any by keyword."""
    for value in (*args, kwargs.get("hidden_states"), *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise BadInput("a layer was called without any tensor to read or change.")


@contextmanager
def capture(
    model: nn.Module, layers: Iterable[Layer | str], *, gradients: bool = False, detach: bool = True, stop: bool = False
) -> Iterator[Captured]:
    """Collects inputs and outputs (and gradients of outputs) of layers while the block runs.

    With `stop=True` the forward pass ends as soon as every layer has been seen, and the exception that ends it does not
    leave the `with` block: what comes after the forward call there is skipped.

    Raises:
        UnknownName: if a layer is not in the model.
        BadInput: if a layer is no module of its own, or takes or returns no tensor.
    """
    names = [layer if isinstance(layer, str) else layer.name for layer in layers]
    modules = list(zip(names, modules_named(model, names), strict=True))
    seen = Captured()

    def keep(tensor: Tensor) -> Tensor:
        return tensor.detach() if detach else tensor

    def before(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen.inputs[name] = keep(hidden_input(args, kwargs))

        return hook

    def after(name: str):
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            hidden = first_tensor(output)
            seen.outputs[name] = keep(hidden)
            if gradients and torch.is_grad_enabled():
                if not hidden.requires_grad:
                    hidden.requires_grad_()  # nothing below is trainable: the graph starts here
                hidden.register_hook(lambda gradient: seen.gradients.__setitem__(name, gradient.detach()))
            if stop and len(seen.outputs) == len(set(names)):
                raise _Stop

        return hook

    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for name, module in modules:
            stack.callback(module.register_forward_pre_hook(before(name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after(name)).remove)
        with suppress(_Stop):
            yield seen
