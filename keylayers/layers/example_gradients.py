"""Squared norms of every example's own gradient, of linear layers, from one backward pass of a whole batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.layers.capturing import first_tensor, hidden_input
from keylayers.layers.layer import Layer
from keylayers.layers.structure import Node, parameters_of, uncompiled, walk


def thin_modules(model: nn.Module, layers: Sequence[Layer]) -> dict[int, list[str]]:
    """Place of each layer that is made of linear maps alone (nn.Linear, GPT-2's Conv1D), none of them tied -> their
    names."""
    nodes = {node.name: node.inner for node in walk(model)}
    own = parameters_of(model)
    places = [id(value) for value in own.values()]
    found = {}
    for place, layer in enumerate(layers):
        names = dict.fromkeys(name.rpartition(".")[0] for name in layer.parameters)
        single = all(name in own and places.count(id(own[name])) == 1 for name in layer.parameters)
        if single and all(_linear(nodes.get(name)) for name in names):
            found[place] = list(names)
    return found


def _linear(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


@contextmanager
def squared_gradients(
    model: nn.Module, modules: Sequence[str], rows: int, see: Callable[[str, Float[Tensor, " rows"] | None], None]
) -> Iterator[nn.Module]:
    """Within the block, a backward pass of a batch's summed loss tells `see` the squared norm of each example's
    gradient in the weight and bias of every module; None where a call does not tell examples apart, or is
    not the only one.

    Nothing needs `requires_grad`; no gradient of a weight of the whole batch is made. Memory: the activations, and for
    one example the smaller of a (places, places) and a (d_out, d_in) matrix.
    """
    called: set[str] = set()

    def hook_for(node: Node):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            if not torch.is_grad_enabled():
                return
            x, made = hidden_input(args, kwargs).detach(), first_tensor(output)
            if node.name in called or len(x) != rows or len(made) != rows:
                see(node.name, None)
                return
            called.add(node.name)
            if not made.requires_grad:
                made.requires_grad_()  # nothing below is trainable: the graph starts here
            biased = node.inner._parameters.get("bias") is not None
            made.register_hook(lambda back: see(node.name, _squares(x, back.detach(), biased)))

        return hook

    wanted = set(modules)
    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for node in walk(model):
            if node.name in wanted:
                stack.callback(node.module.register_forward_hook(hook_for(node), with_kwargs=True).remove)
        yield model


def _squares(x: Tensor, back: Tensor, biased: bool) -> Float[Tensor, " rows"]:
    """|sum_t back_t x_t'|^2 of each row, and of its bias |sum_t back_t|^2; float64.

    Either the gradient itself is made, an example at a time, or with fewer products its norm from the inner products of
    places: sum_{s,t} (x_s . x_t) (back_s . back_t).
    """
    precise = torch.promote_types(back.dtype, torch.float32)
    x, back = (one.reshape(len(one), -1, one.shape[-1]).to(precise) for one in (x, back))
    length, d_in, d_out = x.shape[1], x.shape[2], back.shape[2]
    through_places = length * (d_in + d_out) <= d_in * d_out
    rows = []
    for one, gradient in zip(x, back, strict=True):
        product = (one @ one.T) * (gradient @ gradient.T) if through_places else (gradient.T @ one).square()
        rows.append(product.sum(dtype=torch.float64))
    squares = torch.stack(rows)
    return squares + back.sum(1).square().sum(1, dtype=torch.float64) if biased else squares
