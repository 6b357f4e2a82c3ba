"""What tuning changed: the delta of every layer, low-rank from an adapter or dense from two checkpoints."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.layer import Layer
from keylayers.layers.model_versions import versions
from keylayers.layers.tensors import TensorSource, tensors_in_memory


@dataclass(frozen=True)
class LowRankDelta:
    """The change of one weight matrix as scaling * up @ down (LoRA's beta B A), or of a stack of them (experts)."""

    up: Float[Tensor, "*experts d_out rank"]
    down: Float[Tensor, "*experts rank d_in"]
    scaling: float
    transposed: bool = False
    """Whether the weight is stored (d_in, d_out), as in GPT-2's Conv1D."""
    hooked: bool = True
    """Whether a linear module computes with the weight, so that the change can be added to its output; that of fused
    experts, routers and embeddings goes into the weight."""
    alone: bool = False
    """Whether a tied weight changes in this one place only."""

    def dense(self) -> Tensor:
        """The change in the weight's own layout."""
        left, right = self.factors()
        return self.scaling * (left @ right)

    def factors(self) -> tuple[Tensor, Tensor]:
        """The two matrices whose product, times the scaling, is the change in the weight's own layout."""
        return (self.down.mT, self.up.mT) if self.transposed else (self.up, self.down)

    def slice(self, index: int) -> "LowRankDelta":
        """The change of one expert."""
        return replace(self, up=self.up[index], down=self.down[index])


@dataclass(frozen=True)
class DenseDelta:
    """The change of one parameter, loaded when asked for, so that a checkpoint pair streams."""

    load: Callable[[], Tensor]
    load_slice: Callable[[int], Tensor] | None = None
    """One slice of its first axis, without the others."""
    whole: "DenseDelta | None" = None
    """The change that this one is a slice of."""
    alone: bool = False
    """Whether a tied parameter changes in this one place only."""

    def dense(self) -> Tensor:
        """The change in the parameter's own layout."""
        return self.load()

    def slice(self, index: int) -> "DenseDelta":
        """The change of one slice of the first axis."""
        part = self.load_slice
        return DenseDelta((lambda: self.load()[index]) if part is None else (lambda: part(index)), whole=self)


Delta = LowRankDelta | DenseDelta


@dataclass(frozen=True)
class Deltas:
    """The changes of a tuned model, grouped by the layers that are scored."""

    layers: tuple[Layer, ...]
    changes: tuple[Mapping[str, Delta], ...]
    """Per layer, parameter name (`name[3]` for slice 3) -> its change; empty for a layer that tuning left alone."""
    remainder: Mapping[str, Delta] = field(default_factory=dict)
    """Changes of what belongs to no scored layer: norms, embeddings, routers, running statistics of batch norms."""
    source: str = ""
    notes: tuple[str, ...] = ()
    """What a reader of the scores must know of the comparison: rounding, and what was left out."""

    @property
    def low_rank(self) -> bool:
        """Whether every change is added to the output of a module, which needs no weight gradients."""
        every = (delta for change in (*self.changes, self.remainder) for delta in change.values())
        return all(isinstance(delta, LowRankDelta) and delta.hooked for delta in every)

    def norms(self) -> Float[Tensor, " layers"]:
        """Frobenius norm of each layer's change, float64; one dense change in memory at a time."""
        return torch.tensor(
            [sum(float(d.dense().double().pow(2).sum()) for d in change.values()) ** 0.5 for change in self.changes],
            dtype=torch.float64,
        )

    def uniform(self, gate: float) -> Float[Tensor, " layers"]:
        """One gate value for every layer."""
        return torch.full((len(self.layers),), float(gate))

    def held(self) -> "Deltas":
        """The same deltas with every change in memory, for methods that need all of them at each step."""

        def hold(changes: Mapping[str, Delta]) -> dict[str, Delta]:
            return {name: delta if isinstance(delta, LowRankDelta) else _held(delta) for name, delta in changes.items()}

        return replace(self, changes=tuple(map(hold, self.changes)), remainder=hold(self.remainder))


def _held(delta: DenseDelta) -> DenseDelta:
    change = delta.dense()
    if change.untyped_storage().nbytes() > change.nbytes:  # a view would keep all that it is a slice of
        change = change.clone()
    return held_delta(change, alone=delta.alone)


def held_delta(change: Tensor, *, alone: bool = False) -> DenseDelta:
    """A dense change that is already in memory."""
    return DenseDelta(lambda: change, alone=alone)


def deltas_from_checkpoints(
    base: TensorSource | nn.Module,
    tuned: TensorSource | nn.Module,
    layers: Sequence[Layer],
    *,
    unchanged_kept: bool = False,
) -> Deltas:
    """Dense deltas tuned - base, streamed tensor by tensor; what did not change is left out.

    A model as the base says which tensors are tied; both are compared, and subtracted, in the coarser of their
    precisions. `keylayers.models.deltas_of` also takes checkpoints whose stored names differ from the model's.

    Raises:
        BadInput: if the two are not versions of one model, are equal, or differ only outside the layers.
    """
    first = tensors_in_memory(base, "the base model") if isinstance(base, nn.Module) else base
    second = tensors_in_memory(tuned, "the tuned model") if isinstance(tuned, nn.Module) else tuned
    both = versions(first, second, base if isinstance(base, nn.Module) else None)
    seen = {name: both.compared(name) for name in both.base}
    changed = [name for name, (differs, _) in seen.items() if differs]
    rounded = next((precision for _, precision in seen.values() if precision), None)
    if not changed:
        within = "" if rounded is None else f" when both are rounded to {rounded}, the coarser of their precisions"
        raise BadInput(f"{first.origin} and {second.origin} hold equal tensors{within}: nothing was tuned.")
    notes = both.notes()
    if rounded is not None:
        notes += (
            f"{second.origin} is stored in {rounded}, which is coarser than the base: both are compared in {rounded}, "
            f"where {len(both.base) - len(changed)} of {len(both.base)} tensors are equal",
        )

    def change(name: str) -> DenseDelta:
        return DenseDelta(lambda: both.change(name), lambda index: both.change_of_row(name, index))

    found: dict[str, Delta] = {name: change(name) for name in (both.base if unchanged_kept else changed)}
    source = f"{second.origin} - {first.origin}"
    return grouped(found, layers, first.shapes, source=source, notes=notes)


def grouped(
    found: Mapping[str, Delta],
    layers: Iterable[Layer],
    known: Mapping[str, Sequence[int]],
    source: str,
    notes: tuple[str, ...] = (),
) -> Deltas:
    """The changes by layer; a layer that is a slice of a fused parameter gets that slice of the change.

    Raises:
        UnknownName: if a layer has a parameter that is not among the known ones.
        BadInput: if no layer changed.
    """
    layers = tuple(layers)
    for name in (name for layer in layers if layer.tied_to is None for name in layer.parameters):
        if name.split("[")[0] not in known:
            raise UnknownName("parameter of a layer", name, known)
    owner = {name: index for index, layer in enumerate(layers) for name in layer.parameters}
    shared = dict(owner)
    for index, layer in enumerate(layers):  # a tied weight is stored under its first name
        if layer.tied_to is not None:
            shared.setdefault(layer.tied_to, index)
    slices = {name.split("[")[0] for name in owner if "[" in name}
    by_layer: list[dict[str, Delta]] = [{} for _ in layers]
    remainder: dict[str, Delta] = {}
    for name, delta in found.items():
        owners = owner if delta.alone else shared
        if name in owners:
            by_layer[owners[name]][name] = delta
        elif name in slices:
            for index in range(known[name][0]):
                part = f"{name}[{index}]"
                (by_layer[owner[part]] if part in owner else remainder)[part] = delta.slice(index)
        else:
            remainder[name] = delta
    if not any(by_layer):
        raise BadInput(
            f"tuning changed none of the scored layers, only {', '.join(sorted(remainder)[:3])}"
            f"{' and others' if len(remainder) > 3 else ''}; choose another granularity."
        )
    return Deltas(layers, tuple(by_layer), remainder, source, notes)
