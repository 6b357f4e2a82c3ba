"""Which layers the data reaches: those on whose parameters the loss depends at all."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice

import torch
from torch import Tensor, nn

from keylayers.layers.layer import Layer
from keylayers.layers.structure import parameters_of, uncompiled, walk
from keylayers.measures.loss import evaluating
from keylayers.measures.objective import Batch, Loss, language_loss

LOOKS = 8
"""Batches looked at, at most: an expert may wait for its token, a vision tower waits in vain."""


def reached(
    model: nn.Module, layers: Sequence[Layer], data: Iterable[Batch], loss: Loss = language_loss
) -> tuple[Layer, ...]:
    """The layers that the loss of some batch depends on, in order; the others, such as the vision tower of a model that
    gets text, can neither learn from this data nor matter for it.

    Read off the graph of a forward pass, batch after batch until all are reached or none is left of the first few;
    nothing is differentiated. Of parameters that have no gradients (quantised ones), whether their module was called.
    The model comes back as it was.
    """
    own = parameters_of(model)
    places: dict[str, list[str]] = {
        layer.name: [name.partition("[")[0] for name in layer.parameters] for layer in layers
    }
    touched: set[str] = set()
    with evaluating(model), torch.random.fork_rng(range(torch.cuda.device_count())), uncompiled(model):
        for batch in islice(data, LOOKS):
            with _watched(model, own) as called, torch.enable_grad():
                summed, _ = loss(model, batch)
                leaves = _leaves(summed)
            touched |= called | {name for name, parameter in own.items() if id(parameter) in leaves}
            if all(not touched.isdisjoint(names) for names in places.values()):
                break
    return tuple(layer for layer in layers if not touched.isdisjoint(places[layer.name]))


@contextmanager
def _watched(model: nn.Module, own: dict[str, nn.Parameter]) -> Iterator[set[str]]:
    """Asks all parameters for gradients that can have them; of the others the set gets those whose module is called."""
    flags = [(parameter, parameter.requires_grad) for parameter in {id(one): one for one in own.values()}.values()]
    called: set[str] = set()
    with ExitStack() as stack:
        for parameter, flag in flags:
            stack.callback(parameter.requires_grad_, flag)
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(True)
        for node in walk(model):
            stored = [
                f"{node.name}.{key}".removeprefix(".")
                for key, value in node.inner._parameters.items()
                if value is not None and not value.requires_grad
            ]
            if stored:

                def note(module: nn.Module, args: object, names: Sequence[str] = stored) -> None:
                    called.update(names)

                stack.callback(node.module.register_forward_pre_hook(note).remove)
        yield called


def _leaves(value: Tensor) -> set[int]:
    """Identities of the tensors that a value was computed from and that ask for gradients."""
    leaves, seen, left = set[int](), set[object](), [value.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (variable := getattr(node, "variable", None)) is not None:
            leaves.add(id(variable))
        left += [before for before, _ in node.next_functions]
    return leaves
