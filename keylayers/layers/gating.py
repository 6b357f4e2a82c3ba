"""Gates on deltas: every layer at theta_0 + gate * delta, differentiable in the gates (ILA, Eq. 1, 5, 6)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.capture import hidden_input
from keylayers.layers.deltas import Delta, Deltas, DenseDelta, LowRankDelta
from keylayers.layers.placing import frozen, placing, swapped
from keylayers.layers.structure import tensors_of, uncompiled, walk

__all__ = ["Gates", "frozen", "gate_gradients", "gated"]


class _AddLowRank(torch.autograd.Function):
    """output + gate * scaling * (x down^T) up^T, keeping only the rank-sized product for the backward pass.

    dL/dgate = scaling * sum((dL/dy up) o (x down^T)): two thin products per layer, where autograd on a materialised
    delta would need the d_out x d_in weight gradient.
    """

    @staticmethod
    def forward(ctx, output, x, down, up, gate, scaling):
        thin = x.reshape(-1, x.shape[-1]) @ down.T  # (tokens, rank)
        ctx.save_for_backward(thin, down, up, gate)
        ctx.scaling = scaling
        flat = output.reshape(-1, output.shape[-1])
        return torch.addmm(flat, thin * (gate * scaling).to(thin.dtype), up.T).view_as(output)

    @staticmethod
    def backward(ctx, gradient):
        thin, down, up, gate = ctx.saved_tensors
        back = gradient.reshape(-1, gradient.shape[-1]) @ up  # (tokens, rank)
        for_gate = for_x = None
        if ctx.needs_input_grad[4]:
            precise = torch.promote_types(back.dtype, torch.float32)
            for_gate = ctx.scaling * torch.sum(back * thin, dtype=precise).to(gate.dtype)
        if ctx.needs_input_grad[1]:
            for_x = ((back * (gate * ctx.scaling).to(back.dtype)) @ down).view(*gradient.shape[:-1], -1)
        return gradient, for_x, None, None, for_gate, None


class _Blend(torch.autograd.Function):
    """base + gate * change, with dL/dgate = <dL/dweight, change> and no copy of either; one gate, or one per slice."""

    @staticmethod
    def forward(ctx, base, change, gate):
        ctx.save_for_backward(change, gate)
        return torch.addcmul(base, change, gate.to(base.dtype))

    @staticmethod
    def backward(ctx, gradient):
        change, gate = ctx.saved_tensors
        return None, None, _inner(gradient, change, gate.shape).to(gate.dtype)


def _inner(a: Tensor, b: Tensor, shape: torch.Size) -> Tensor:
    """<a, b> in at least fp32, over everything or for each slice of the first axis, in the gate's shape."""
    precise = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(precise), b.to(precise)
    return torch.dot(a.reshape(-1), b.reshape(-1)) if not shape else (a * b).flatten(1).sum(1).view(shape)


@dataclass(frozen=True)
class _Place:
    """The change of one parameter, and which gates multiply it: one, or one per slice of its first axis."""

    gates: tuple[int, ...]
    parts: tuple[DenseDelta, ...]
    sliced: bool

    def change(self, like: Tensor) -> Tensor:
        dense = torch.stack([part.dense() for part in self.parts]) if self.sliced else self.parts[0].dense()
        return dense.to(like)

    def gate(self, values: Sequence[Tensor], like: Tensor) -> Tensor:
        """Scalar, or (slices, 1, ...) to multiply the change."""
        if not self.sliced:
            return values[self.gates[0]].to(like.device)
        return torch.stack([values[g] for g in self.gates]).to(like.device).view(-1, *[1] * (like.ndim - 1))


def _dense_places(deltas: Deltas) -> dict[str, _Place]:
    """Parameter or buffer -> its dense changes; the remainder's gate is the last."""
    found: dict[str, dict[str, tuple[int, DenseDelta]]] = {}
    for index, changes in enumerate((*deltas.changes, deltas.remainder)):
        for name, delta in changes.items():
            if isinstance(delta, DenseDelta):
                whole, _, part = name.partition("[")
                found.setdefault(whole, {})[part] = (index, delta)
    places = {}
    for name, parts in found.items():
        ordered = [parts[key] for key in sorted(parts, key=lambda key: int(key.removesuffix("]") or 0))]
        gates, dense = tuple(index for index, _ in ordered), tuple(delta for _, delta in ordered)
        places[name] = _Place(gates, dense, sliced="" not in parts)
    return places


Gates = Float[Tensor, " layers"]


@contextmanager
def gated(
    model: nn.Module, deltas: Deltas, gates: Gates | Callable[[], Gates], remainder: float | Tensor = 1.0
) -> Iterator[nn.Module]:
    """The base model with each layer's delta multiplied by its gate, until the block ends.

    Gates of 1 give the tuned model, gates of 0 the base model (with `remainder` likewise, which multiplies the changes
    outside the scored layers). A function in place of the gates is called once at the start of every forward pass, so
    that one block serves a whole optimisation. The model's own tensors are never written. Weights take the model's
    precision: in bf16 a gated change smaller than half a step of the weight is rounded away.

    Raises:
        UnknownName: if a changed parameter is not in the model.
        BadInput: if there is not one gate per layer, or a weight that changes is stored quantised.
    """
    rest = remainder if isinstance(remainder, Tensor) else torch.tensor(float(remainder))
    now: list[Tensor] = []
    placed: dict[str, tuple[float, ...] | None] = {}
    places, thin, own = _dense_places(deltas), _low_rank(deltas), tensors_of(model)

    def begin(module: nn.Module, args: object) -> None:
        values = gates() if callable(gates) else gates
        if len(values) != len(deltas.layers):
            raise BadInput(f"{len(values)} gates for {len(deltas.layers)} layers; give one gate per layer.")
        now[:] = [*values.unbind(), rest]  # unbind: one gradient kernel for all layers
        still = None if torch.is_grad_enabled() else [*values.tolist(), float(rest)]
        for name, where in places.items():
            value = None if still is None else tuple(still[index] for index in where.gates)
            if value is not None and placed.get(name) == value:
                continue  # without gradients, only the weights whose gate moved are made anew
            placed[name] = value
            blend = _Blend.apply(own[name].detach(), changes[name], where.gate(now, own[name]))
            place(name, blend if isinstance(own[name], nn.Parameter) else blend.detach())  # buffers take no gradient

    def add_change(index: int, delta: LowRankDelta):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
            x = hidden_input(args, kwargs)
            return _AddLowRank.apply(
                output, x, delta.down.to(x), delta.up.to(x), now[index].to(x.device), delta.scaling
            )

        return hook

    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        place = stack.enter_context(placing(model, places))
        changes = {name: where.change(like=own[name]) for name, where in places.items()}
        for node in walk(model):
            if node.name in thin:
                hook = add_change(*thin.pop(node.name))
                stack.callback(node.module.register_forward_hook(hook, with_kwargs=True).remove)
        if thin:
            raise UnknownName("layer", next(iter(thin)), (node.name for node in walk(model)))
        stack.callback(model.register_forward_pre_hook(begin).remove)
        yield model


def _low_rank(deltas: Deltas) -> dict[str, tuple[int, LowRankDelta]]:
    """Module -> its gate's index and its low-rank change."""
    return {
        name.removesuffix(".weight"): (index, delta)
        for index, changes in enumerate((*deltas.changes, deltas.remainder))
        for name, delta in changes.items()
        if isinstance(delta, LowRankDelta)
    }


def gate_gradients(
    model: nn.Module,
    deltas: Deltas,
    gate: float,
    run_backward: Callable[[], None],
) -> tuple[Float[Tensor, " layers"], float]:
    """dL/dgate of every layer, and of the remainder, with all gates at one value: float64.

    `run_backward` runs the forward and backward passes whose gradients add up; call inside `frozen(model)`. Dense
    changes stream: they are loaded one at a time, once to place the weights and once per backward pass as each weight
    gradient appears and is freed. Memory: the model twice, one change and one gradient. Running statistics are moved
    along with the remainder but have no gradient of their own.
    """
    gradients = torch.zeros(len(deltas.layers) + 1, dtype=torch.float64)
    gates = torch.full((len(deltas.layers) + 1,), float(gate), dtype=torch.float64, requires_grad=True)
    own = tensors_of(model)
    leaves: dict[str, Tensor] = {}
    for name, where in _dense_places(deltas).items():
        base = own[name].detach()
        leaf = torch.addcmul(base, where.change(like=base), torch.tensor(float(gate)).to(base))
        if isinstance(own[name], nn.Parameter):
            leaf.requires_grad_().register_post_accumulate_grad_hook(_adding_to(gradients, where))
        leaves[name] = leaf
    with swapped(model, leaves), gated(model, _only_low_rank(deltas), gates[:-1], gates[-1]):
        run_backward()
    if gates.grad is not None:
        gradients += gates.grad
    return gradients[:-1], float(gradients[-1])


def _adding_to(gradients: Tensor, where: _Place) -> Callable[[Tensor], None]:
    """A hook that turns a weight's gradient into its gates' and frees it."""

    def take(leaf: Tensor) -> None:
        assert leaf.grad is not None
        shape = where.gate(gradients.unbind(), leaf).shape
        inner = _inner(leaf.grad, where.change(like=leaf.grad), shape).reshape(-1).cpu()
        gradients.index_add_(0, torch.tensor(where.gates), inner.double())
        leaf.grad = None

    return take


def _only_low_rank(deltas: Deltas) -> Deltas:
    def kept(changes: Mapping[str, Delta]) -> dict[str, Delta]:
        return {name: delta for name, delta in changes.items() if isinstance(delta, LowRankDelta)}

    return Deltas(deltas.layers, tuple(map(kept, deltas.changes)), kept(deltas.remainder), deltas.source)
