"""What tuning changed: the delta of every layer, low-rank from an adapter or dense from two checkpoints."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.layer import Layer
from keylayers.layers.structure import Node, first_names, logical_shape, parameters_of, unwrap, walk
from keylayers.layers.tensors import TensorSource, check_same_tensors, comparable, equal_tensors, tensors_in_memory


@dataclass(frozen=True)
class LowRankDelta:
    """The change of one weight matrix as scaling * up @ down (LoRA's beta B A)."""

    up: Float[Tensor, "d_out rank"]
    down: Float[Tensor, "rank d_in"]
    scaling: float
    transposed: bool = False
    """Whether the weight is stored (d_in, d_out), as in GPT-2's Conv1D."""

    def dense(self) -> Tensor:
        """The change in the weight's own layout."""
        change = self.scaling * (self.up @ self.down)
        return change.T if self.transposed else change


@dataclass(frozen=True)
class DenseDelta:
    """The change of one parameter, loaded when asked for, so that a checkpoint pair streams."""

    load: Callable[[], Tensor]

    def dense(self) -> Tensor:
        """The change in the parameter's own layout."""
        return self.load()


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

    @property
    def low_rank(self) -> bool:
        """Whether every change is an adapter's, which needs no weight gradients."""
        return all(isinstance(d, LowRankDelta) for change in (*self.changes, self.remainder) for d in change.values())

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
            return {
                name: delta if isinstance(delta, LowRankDelta) else held_delta(delta.dense())
                for name, delta in changes.items()
            }

        return Deltas(self.layers, tuple(map(hold, self.changes)), hold(self.remainder), self.source)


def deltas_from_adapter(peft_model: nn.Module, layers: Sequence[Layer], adapter: str = "default") -> Deltas:
    """The deltas of a loaded peft LoRA model, relative to the base model with the adapter unloaded.

    Low-rank for LoRA on weight matrices, dense for fused experts, convolutions and embeddings, and for the modules
    trained in full beside it (`modules_to_save`). What no scored layer owns is the remainder.

    Raises:
        BadInput: if the model holds no LoRA of that name, or one that is more than an added product of two matrices
            (DoRA and other variants, trained biases, an initialisation that changes the base weights).
    """
    from peft.tuners.lora import LoraLayer  # slow to import, and needed only here
    from peft.utils import ModulesToSaveWrapper

    _check_plain_lora(peft_model, adapter)
    parameters = parameters_of(peft_model)
    found: dict[str, Delta] = {}
    for node in walk(peft_model):
        module = node.module
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            found |= _saved_deltas(node, module.modules_to_save[adapter])
        elif isinstance(module, LoraLayer) and hasattr(module, "parameter_name"):
            found |= _parameter_deltas(node.name, module, adapter)
        elif isinstance(module, LoraLayer) and adapter in module.scaling:
            name = f"{node.name}.weight"
            if name not in parameters or adapter in module.lora_variant or module.lora_bias.get(adapter):
                raise BadInput(
                    f"{node.name} is adapted by {type(module).__name__} with more than a product of two matrices "
                    "added to its weight; merge the adapter and give both checkpoints."
                )
            found[name] = _module_delta(module, adapter)
    if not found:
        raise BadInput(f"the model holds no LoRA adapter named {adapter!r}; train one first or give two checkpoints.")
    shapes = {name: logical_shape(value) for name, value in parameters.items()}
    return _grouped(found, layers, shapes, source=f"LoRA adapter {adapter!r}")


def _check_plain_lora(peft_model: nn.Module, adapter: str) -> None:
    config = getattr(peft_model, "peft_config", {}).get(adapter)
    if config is None:
        return
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise BadInput(
            f"adapter {adapter!r} began with init_lora_weights={start!r}, which changes the base weights too; merge it "
            "and give both checkpoints."
        )
    if getattr(config, "bias", "none") != "none":
        raise BadInput(
            f"adapter {adapter!r} trained biases of the base model (bias={config.bias!r}); train with bias='none', or "
            "merge it and give both checkpoints."
        )


def _module_delta(module: Any, adapter: str) -> Delta:
    """The change a LoRA module makes to its weight."""
    if adapter in module.lora_A and module.lora_A[adapter].weight.ndim == 2:
        return LowRankDelta(
            up=module.lora_B[adapter].weight.detach().clone(),
            down=module.lora_A[adapter].weight.detach().clone(),
            scaling=float(module.scaling[adapter]),
            transposed=bool(getattr(module, "fan_in_fan_out", False)),
        )
    return held_delta(module.get_delta_weight(adapter).detach().clone())  # convolutions, embeddings


def _parameter_deltas(name: str, module: Any, adapter: str) -> dict[str, Delta]:
    """Changes of parameters targeted by name (fused experts); peft nests one wrapper for each around the module."""
    found: dict[str, Delta] = {}
    while hasattr(module, "parameter_name"):
        if adapter in module.lora_A:
            found[f"{name}.{module.parameter_name}"] = held_delta(module.get_delta_weight(adapter).detach().clone())
        module = module.base_layer
    return found


def _saved_deltas(node: Node, trained: nn.Module) -> dict[str, Delta]:
    """Changes of a module that peft trained in full as a copy."""
    before, after = dict(node.inner.named_parameters()), dict(trained.named_parameters())
    return {
        f"{node.name}.{key}": held_delta(after[key].detach().float() - value.detach().float())
        for key, value in before.items()
        if not torch.equal(after[key], value)
    }


def held_delta(change: Tensor) -> DenseDelta:
    """A dense change that is already in memory."""
    return DenseDelta(lambda: change)


def deltas_from_checkpoints(
    base: TensorSource | nn.Module,
    tuned: TensorSource | nn.Module,
    layers: Sequence[Layer],
    *,
    unchanged_kept: bool = False,
) -> Deltas:
    """Dense deltas tuned - base, streamed tensor by tensor; what did not change is left out.

    A model as the base says which tensors are tied, and its own precision counts; `keylayers.models.deltas_of` also
    takes checkpoints whose stored names differ from the model's.

    Raises:
        BadInput: if the two are not versions of one model, are equal, or differ only outside the layers.
    """
    first = tensors_in_memory(base, "the base model") if isinstance(base, nn.Module) else comparable(base, {})
    second = tensors_in_memory(tuned, "the tuned model") if isinstance(tuned, nn.Module) else tuned
    second = comparable(second, first_names(base) if isinstance(base, nn.Module) else {})
    check_same_tensors(first, second)

    def change(name: str) -> DenseDelta:
        return DenseDelta(lambda: second[name]().float() - first[name]().float())

    changed = [name for name in first if unchanged_kept or not equal_tensors(first[name](), second[name]())]
    if not changed:
        raise BadInput(f"{first.origin} and {second.origin} hold equal tensors: nothing was tuned.")
    found: dict[str, Delta] = {name: change(name) for name in changed}
    return _grouped(found, layers, first.shapes, source=f"{second.origin} - {first.origin}")


def _grouped(
    found: Mapping[str, Delta], layers: Iterable[Layer], known: Mapping[str, Sequence[int]], source: str
) -> Deltas:
    """The changes by layer; a layer that is a slice of a fused parameter gets that slice of the change."""
    layers = tuple(layers)
    for name in (name for layer in layers if layer.tied_to is None for name in layer.parameters):
        if name.split("[")[0] not in known:
            raise UnknownName("parameter of a layer", name, known)
    owner = {name: index for index, layer in enumerate(layers) for name in layer.parameters}
    for index, layer in enumerate(layers):  # a tied weight is stored under its first name
        if layer.tied_to is not None:
            owner.setdefault(layer.tied_to, index)
    slices = {name.split("[")[0] for name in owner if "[" in name}
    grouped: list[dict[str, Delta]] = [{} for _ in layers]
    remainder: dict[str, Delta] = {}
    for name, delta in found.items():
        if name in owner:
            grouped[owner[name]][name] = delta
        elif name in slices:
            for index in range(known[name][0]):
                part = f"{name}[{index}]"
                (grouped[owner[part]] if part in owner else remainder)[part] = _slice_of(delta, index)
        else:
            remainder[name] = delta
    if not any(grouped):
        raise BadInput(
            f"tuning changed none of the scored layers, only {', '.join(sorted(remainder)[:3])}"
            f"{' and others' if len(remainder) > 3 else ''}; choose another granularity."
        )
    return Deltas(layers, tuple(grouped), remainder, source)


def _slice_of(delta: Delta, index: int) -> DenseDelta:
    return DenseDelta(lambda: delta.dense()[index])


def unloaded(peft_model: nn.Module) -> nn.Module:
    """The base model with its adapters taken out, bit-identical to before they were put in."""
    unload = getattr(peft_model, "unload", None)
    return unload() if callable(unload) else unwrap(peft_model)
