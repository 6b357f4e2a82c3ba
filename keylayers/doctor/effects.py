"""The gate that finds dead parts: a block that ignores its input or returns it, a layer whose output goes nowhere."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keylayers.doctor.guard import foreign_hooks
from keylayers.doctor.probe import (
    CheckResult,
    Inputs,
    ModelUnderTest,
    Skipped,
    digest,
    failed,
    layers_of,
    passed,
    projected,
    some,
)
from keylayers.layers.capturing import first_tensor, hidden_input
from keylayers.layers.intervene import replaced
from keylayers.layers.layer import Layer
from keylayers.layers.structure import parameters_of, uncompiled, walk
from keylayers.layers.tensor_swap import frozen, swapped


@dataclass
class _Call:
    """What one module did in one pass; the latest call counts."""

    order: int
    before: tuple[float, float]
    after: tuple[float, float]
    returns_input: bool


def acts(patient: ModelUnderTest) -> CheckResult:
    """Every block and layer is called, depends on its input, changes it, and matters to the model's output."""
    inputs, other = patient.probe()
    layers, blocks = patient.layers, patient.blocks
    if not layers:
        raise Skipped("the network has no layer with weights")
    modules = {node.name for node in walk(patient.model)}
    places = list(dict.fromkeys([*blocks, *(_place(layer, modules) for layer in layers)]))
    calls, again = _calls(patient, places, inputs), _calls(patient, places, other)
    faults, behind = _own_faults(patient, layers, calls, again, modules)
    silent = _without_effect(patient, layers, calls, modules)
    caused = [name for name in silent if calls[_place_of(name, modules)].order <= behind or _inside(name, faults)]
    faults |= {name: "its output changes nothing in the model's output" for name in silent if name not in caused}
    if faults:
        hooked = foreign_hooks(patient.model)
        told = [
            f"{name}: {why}" + (f"; a hook sits on it ({hooked[name][0]})" if name in hooked else "")
            for name, why in faults.items()
        ]
        more = f"; {len(caused)} layers have no effect because of that" if caused else ""
        hook = "remove the hook that is named, or " if any(name in hooked for name in faults) else ""
        return failed(
            some(told) + more,
            f"{hook}mend the forward of that module; a part without effect can be neither scored nor trained",
        )
    idle = [layer.name for layer in layers if _place(layer, modules) not in calls]
    rest = f"; {len(idle)} experts' layers got no token of this small input" if idle else ""
    return passed(
        f"{len(blocks)} blocks and {len(layers) - len(idle)} layers are called, depend on their input and change the "
        f"output{rest}"
    )


def _place(layer: Layer, modules: set[str]) -> str:
    return _place_of(layer.name, modules)


def _place_of(name: str, modules: set[str]) -> str:
    """The module that computes a layer: itself, or the owner of a fused expert tensor."""
    return name if name in modules else name.rpartition(".")[0]


def _inside(name: str, faults: dict[str, str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in faults)


def _calls(patient: ModelUnderTest, places: Iterable[str], inputs: Inputs) -> dict[str, _Call]:
    seen: dict[str, _Call] = {}

    def note(name: str, before: Tensor, after: Tensor) -> None:
        same = before.shape == after.shape and torch.equal(before, after)
        seen[name] = _Call(len(seen), digest(before), digest(after), same)

    with torch.no_grad(), _watched(patient.model, places, note):
        patient.run(inputs)
    return seen


@contextmanager
def _watched(model: nn.Module, places: Iterable[str], note: object) -> Iterator[None]:
    """Calls note(name, hidden states in, hidden states out) whenever one of those modules returns."""
    wanted = set(places)
    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        for node in walk(model):
            if node.name in wanted:

                def hook(module: nn.Module, args: tuple, kwargs: dict, output: object, name: str = node.name) -> None:
                    note(name, hidden_input(args, kwargs), first_tensor(output))  # type: ignore[operator]

                stack.callback(node.module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _own_faults(
    patient: ModelUnderTest,
    layers: tuple[Layer, ...],
    calls: dict[str, _Call],
    again: dict[str, _Call],
    modules: set[str],
) -> tuple[dict[str, str], int]:
    """What is wrong with a module by itself, by name; and up to which place in the order nothing can matter."""
    faults: dict[str, str] = {}
    behind = -1
    for name in (*patient.blocks, *(layer.name for layer in layers)):
        place, within = _place_of(name, modules), [layer for layer in layers if layer.name.startswith(f"{name}.")]
        if place not in calls:
            if not _inside(name, faults) and not _is_conditional(patient, name):
                faults[name] = "it is never called"
            continue
        call, twin = calls[place], again.get(place)
        if name in patient.blocks and call.returns_input:
            idle = [layer for layer in within if _place(layer, modules) not in calls]
            never = f" and {len(idle)} of its {len(within)} layers are never called" if idle else ""
            faults[name] = f"it returns its input unchanged{never}"
        elif twin is not None and call.before != twin.before and call.after == twin.after and not _inside(name, faults):
            faults[name] = "its output does not depend on its input"
            behind = max(behind, call.order)
    return faults, behind


def _is_conditional(patient: ModelUnderTest, name: str) -> bool:
    """Whether a layer belongs to one of several experts, which need not get a token."""
    return any(name.startswith(f"{layer.name}.") for layer in layers_of(patient.model, "expert"))


def _without_effect(
    patient: ModelUnderTest, layers: tuple[Layer, ...], calls: dict[str, _Call], modules: set[str]
) -> list[str]:
    """Names without influence on the output: no gradient reaches them, and a change of their output changes nothing."""
    named = [name for name in (*patient.blocks, *(layer.name for layer in layers)) if _place_of(name, modules) in calls]
    tensors = [name for name in named if name not in modules]
    reached = _reached(patient, [name for name in named if name in modules], tensors)
    with torch.no_grad():
        whole = patient.run()
        return [name for name in named if name not in reached and torch.equal(_shaken(patient, name, modules), whole)]


def _reached(patient: ModelUnderTest, places: list[str], tensors: list[str]) -> set[str]:
    """Those that a gradient from the output reaches; one backward pass for all, nothing kept."""
    found: set[str] = set()
    own = parameters_of(patient.model)

    def note(name: str, before: Tensor, after: Tensor) -> None:
        if not after.requires_grad:
            after.requires_grad_()  # everything below is frozen: the graph starts here
        after.register_hook(lambda gradient: found.add(name) if gradient is not None and bool(gradient.any()) else None)

    def taking(name: str):
        def take(leaf: Tensor) -> None:
            if leaf.grad is not None and bool(leaf.grad.any()):
                found.add(name)
            leaf.grad = None

        return take

    with ExitStack() as stack:
        stack.enter_context(frozen(patient.model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_watched(patient.model, places, note))
        for name in tensors:
            handle = own[name].requires_grad_().register_post_accumulate_grad_hook(taking(name))
            stack.callback(handle.remove)
        output = patient.run()
        if output.requires_grad:
            projected(output).backward()
    return found


def _shaken(patient: ModelUnderTest, name: str, modules: set[str]) -> Tensor:
    """The model's output with that layer's output turned over and moved (of a fused tensor: with its weight so)."""
    if name in modules:
        with replaced(patient.model, {name: lambda before, after: 0.5 - 1.5 * after}):
            return patient.run()
    weight = parameters_of(patient.model)[name].detach()
    with swapped(patient.model, {name: 0.5 - 1.5 * weight}):
        return patient.run()
