"""Gates on the backward pass: it reaches every layer, and the slope at a gate is the slope that differences show."""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from keylayers.doctor.probe import CheckResult, ModelUnderTest, Skipped, failed, layers_of, passed, projected, some
from keylayers.doctor.undo import plain_layers
from keylayers.layers.deltas import Deltas, held_delta
from keylayers.layers.gating import gated
from keylayers.layers.layer import Layer
from keylayers.layers.structure import parameters_of
from keylayers.layers.tensor_swap import frozen
from keylayers.runs import Progress

STEPS = (0.3, 0.1, 0.03, 0.01, 0.003)
"""Half-widths of the central differences, tried until one agrees: kinks spoil wide ones, rounding narrow ones."""
TOLERANCE = 0.05
"""Largest difference between slope and central difference, relative to the larger of slope and median slope."""
SHARE = 0.01
"""Size of the delta, relative to its weight; it points up the gradient, where the slope is steepest."""


def gradients(patient: ModelUnderTest) -> CheckResult:
    """One backward pass gives every layer's weight a finite gradient that is not zero."""
    plain_layers(patient)
    present = parameters_of(patient.model)
    weights = {
        max(layer.parameters, key=lambda name: present[name].numel()): layer
        for layer in patient.layers
        if all(present[name].is_floating_point() for name in layer.parameters)
    }
    largest = _largest_gradients(patient, list(weights))
    experts = tuple(f"{layer.name}." for layer in layers_of(patient.model, "expert"))
    missing = [
        weights[name].name
        for name in weights
        if largest.get(name, 0.0) == 0 and not weights[name].name.startswith(experts or ("\0",))
    ]
    broken = [weights[name].name for name, size in largest.items() if size - size != 0]
    if broken:
        return failed(f"{len(broken)} layers get a gradient that is not finite: {some(broken)}", "try `dtype=float32`")
    if missing:
        return failed(
            f"{len(missing)} of {len(weights)} layers get no gradient, though their output matters: {some(missing)}",
            "something detaches them (no_grad, detach, a rounding); they can be neither trained nor scored by gradient",
        )
    sizes = sorted(largest.values())
    return passed(f"reaches all {len(largest)} layers, finite; largest entries from {sizes[0]:.1e} to {sizes[-1]:.1e}")


def _largest_gradients(patient: ModelUnderTest, names: Sequence[str]) -> dict[str, float]:
    """Largest entry of each weight's gradient; each is read as it appears and freed."""
    largest: dict[str, float] = {}
    present = parameters_of(patient.model)

    def reading(name: str):
        def read(leaf: Tensor) -> None:
            if leaf.grad is not None:
                largest[name] = float(leaf.grad.abs().max())
            leaf.grad = None

        return read

    with ExitStack() as stack:
        stack.enter_context(frozen(patient.model))
        stack.enter_context(torch.enable_grad())
        for name in names:
            handle = present[name].requires_grad_().register_post_accumulate_grad_hook(reading(name))
            stack.callback(handle.remove)
        output = patient.run()
        if output.requires_grad:
            projected(output).backward()
    return largest


def slopes(patient: ModelUnderTest) -> CheckResult:
    """The gradient at each gate is what central differences of the output show."""
    layers = plain_layers(patient)
    if patient.dtype not in (torch.float32, torch.float64):
        raise Skipped(f"central differences need fp32, and the model is in {str(patient.dtype).removeprefix('torch.')}")
    deltas = _uphill(patient, layers)
    at = deltas.uniform(0.5).double().requires_grad_()
    with frozen(patient.model), torch.enable_grad(), gated(patient.model, deltas, at):
        projected(patient.run()).backward()
    assert at.grad is not None
    exact = at.grad.tolist()
    typical = float(at.grad.abs().median())
    errors = {}
    for place, layer in Progress(list(enumerate(deltas.layers)), "gradient is right"):
        scale = max(abs(exact[place]), typical, 1e-30)
        errors[layer.name] = float("inf")
        for h in STEPS:
            error = abs(_difference_at(patient, deltas, place, h) - exact[place]) / scale
            errors[layer.name] = min(errors[layer.name], error)
            if error <= TOLERANCE / 5:
                break
    wrong = [f"{name} (by {error:.0%})" for name, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        return failed(
            f"the slope differs from central differences by more than {TOLERANCE:.0%} at {len(wrong)} of {len(errors)} "
            f"layers: {some(wrong)}",
            "a custom backward is wrong, or the output jumps here; do not trust learned_mask and path_integral with it",
        )
    return passed(
        f"the slope at each of {len(errors)} gates equals a central difference within {max(errors.values()):.1%} "
        f"(at most {TOLERANCE:.0%} allowed)"
    )


def _uphill(patient: ModelUnderTest, layers: Sequence[Layer]) -> Deltas:
    """A small step of each layer's largest weight along its own gradient."""
    present, kept = parameters_of(patient.model), dict[str, Tensor]()
    names = [max(layer.parameters, key=lambda name: present[name].numel()) for layer in layers]
    with frozen(patient.model), torch.enable_grad():
        leaves = [present[name].requires_grad_() for name in names]
        found = torch.autograd.grad(projected(patient.run()), leaves, allow_unused=True)
    for name, leaf, gradient in zip(names, leaves, found, strict=True):
        if gradient is not None and bool(gradient.any()):
            kept[name] = gradient * (SHARE * leaf.detach().norm() / gradient.norm())
    if not kept:
        raise Skipped("no gradient reaches any of the layers")
    chosen = [(layer, name) for layer, name in zip(layers, names, strict=True) if name in kept]
    changes = tuple({name: held_delta(kept[name])} for _, name in chosen)
    return Deltas(tuple(layer for layer, _ in chosen), changes, {}, "uphill")


def _difference_at(patient: ModelUnderTest, deltas: Deltas, place: int, h: float) -> float:
    """Central difference of the projected output in one gate, at gates of 0.5."""
    values = []
    for sign in (1, -1):
        gates = deltas.uniform(0.5).double()
        gates[place] += sign * h
        with frozen(patient.model), torch.no_grad(), gated(patient.model, deltas, gates):
            values.append(float(projected(patient.run())))
    return (values[0] - values[1]) / (2 * h)
