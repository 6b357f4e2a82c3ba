"""Gates on deltas: every layer at theta_0 + gate * delta, differentiable in the gates (ILA, Eq. 1, 5, 6)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.capturing import hidden_input
from keylayers.layers.deltas import Delta, Deltas, LowRankDelta
from keylayers.layers.structure import tensors_of, uncompiled, walk
from keylayers.layers.tensor_swap import frozen, swapped, tensors_swapped

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


class _BlendFactors(torch.autograd.Function):
    """base + gate * scaling * left @ right for a matrix or a stack of them; nothing of the weight's size is kept."""

    @staticmethod
    def forward(ctx, base, left, right, gate, scaling):
        ctx.save_for_backward(left, right, gate)
        ctx.scaling = scaling
        return base + ((gate * scaling).to(left.dtype) * left) @ right

    @staticmethod
    def backward(ctx, gradient):
        left, right, gate = ctx.saved_tensors
        return None, None, None, ctx.scaling * _inner_factors(gradient, left, right, gate.shape).to(gate.dtype), None


def _inner(a: Tensor, b: Tensor, shape: torch.Size) -> Tensor:
    """<a, b> in at least fp32, over everything or for each slice of the first axis, in the gate's shape."""
    precise = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(precise), b.to(precise)
    return torch.dot(a.reshape(-1), b.reshape(-1)) if not shape else (a * b).flatten(1).sum(1).view(shape)


def _inner_factors(gradient: Tensor, left: Tensor, right: Tensor, shape: torch.Size) -> Tensor:
    """<gradient, left @ right> = <gradient right^T, left>, without the product."""
    return _inner(gradient @ right.mT, left, shape)


@dataclass(frozen=True)
class _Place:
    """The change of one parameter, and which gates multiply it: one, or one per slice of its first axis."""

    gates: tuple[int, ...]
    parts: tuple[Delta, ...]
    sliced: bool

    def load(self, like: Tensor) -> "_Loaded":
        """The change in the parameter's precision and on its device."""
        first, thin = self.parts[0], [part for part in self.parts if isinstance(part, LowRankDelta)]
        if len(thin) == len(self.parts) and len({part.scaling for part in thin}) == 1:
            pairs = [part.factors() for part in thin]
            left, right = (torch.stack(one) if self.sliced else one[0] for one in zip(*pairs, strict=True))
            return _Factors(left.to(like), right.to(like), thin[0].scaling)
        whole = getattr(first, "whole", None)
        if self.sliced and whole is not None and all(getattr(part, "whole", None) is whole for part in self.parts):
            return _Dense(whole.dense().to(like))  # read at once, not slice by slice
        dense = torch.stack([part.dense() for part in self.parts]) if self.sliced else first.dense()
        return _Dense(dense.to(like))

    def gate(self, values: Sequence[Tensor], like: Tensor) -> Tensor:
        """Scalar, or (slices, 1, ...) to multiply the change."""
        if not self.sliced:
            return values[self.gates[0]].to(like.device)
        return torch.stack([values[g] for g in self.gates]).to(like.device).view(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class _Dense:
    """A change in memory."""

    change: Tensor

    def blended(self, base: Tensor, gate: Tensor) -> Tensor:
        return _Blend.apply(base, self.change, gate)

    def inner(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        return _inner(gradient, self.change, shape)


@dataclass(frozen=True)
class _Factors:
    """A change as scaling * left @ right, per slice where it is a stack."""

    left: Tensor
    right: Tensor
    scaling: float

    def blended(self, base: Tensor, gate: Tensor) -> Tensor:
        return _BlendFactors.apply(base, self.left, self.right, gate, self.scaling)

    def inner(self, gradient: Tensor, shape: torch.Size) -> Tensor:
        return self.scaling * _inner_factors(gradient, self.left, self.right, shape)


_Loaded = _Dense | _Factors


def _placed(deltas: Deltas) -> dict[str, _Place]:
    """Parameter or buffer -> the changes that go into it; the remainder's gate is the last."""
    found: dict[str, dict[str, tuple[int, Delta]]] = {}
    for index, changes in enumerate((*deltas.changes, deltas.remainder)):
        for name, delta in changes.items():
            if not _is_hooked(delta):
                whole, _, part = name.partition("[")
                found.setdefault(whole, {})[part] = (index, delta)
    places = {}
    for name, parts in found.items():
        ordered = [parts[key] for key in sorted(parts, key=lambda key: int(key.removesuffix("]") or 0))]
        gates, made = tuple(index for index, _ in ordered), tuple(delta for _, delta in ordered)
        places[name] = _Place(gates, made, sliced="" not in parts)
    return places


def _is_hooked(delta: Delta) -> bool:
    return isinstance(delta, LowRankDelta) and delta.hooked


def _alone(places: Mapping[str, _Place]) -> set[str]:
    return {name for name, where in places.items() if where.parts[0].alone}


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
    places, thin, own = _placed(deltas), _hooked(deltas), tensors_of(model)

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
            blend = changes[name].blended(own[name].detach(), where.gate(now, own[name]))
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
        place = stack.enter_context(tensors_swapped(model, places, _alone(places)))
        changes = {name: where.load(like=own[name]) for name, where in places.items()}
        for node in walk(model):
            if node.name in thin:
                hook = add_change(*thin.pop(node.name))
                stack.callback(node.module.register_forward_hook(hook, with_kwargs=True).remove)
        if thin:
            raise UnknownName("layer", next(iter(thin)), (node.name for node in walk(model)))
        stack.callback(model.register_forward_pre_hook(begin).remove)
        yield model


def _hooked(deltas: Deltas) -> dict[str, tuple[int, LowRankDelta]]:
    """Module -> its gate's index and the change that is added to its output."""
    return {
        name.removesuffix(".weight"): (index, delta)
        for index, changes in enumerate((*deltas.changes, deltas.remainder))
        for name, delta in changes.items()
        if isinstance(delta, LowRankDelta) and delta.hooked
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
    places = _placed(deltas)
    for name, where in places.items():
        base = own[name].detach()
        leaf = where.load(like=base).blended(base, torch.tensor(float(gate), device=base.device))
        if isinstance(own[name], nn.Parameter):
            leaf.requires_grad_().register_post_accumulate_grad_hook(_adding_to(gradients, where))
        leaves[name] = leaf
    with swapped(model, leaves, _alone(places)), gated(model, _only_hooked(deltas), gates[:-1], gates[-1]):
        run_backward()
    if gates.grad is not None:
        gradients += gates.grad
    return gradients[:-1], float(gradients[-1])


def _adding_to(gradients: Tensor, where: _Place) -> Callable[[Tensor], None]:
    """A hook that turns a weight's gradient into its gates' and frees it."""

    def take(leaf: Tensor) -> None:
        assert leaf.grad is not None
        shape = where.gate(gradients.unbind(), leaf).shape
        inner = where.load(like=leaf.grad).inner(leaf.grad, shape).reshape(-1).cpu()
        gradients.index_add_(0, torch.tensor(where.gates), inner.double())
        leaf.grad = None

    return take


def _only_hooked(deltas: Deltas) -> Deltas:
    def kept(changes: Mapping[str, Delta]) -> dict[str, Delta]:
        return {name: delta for name, delta in changes.items() if _is_hooked(delta)}

    return replace(deltas, changes=tuple(map(kept, deltas.changes)), remainder=kept(deltas.remainder))
