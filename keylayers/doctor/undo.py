"""Gates on temporary changes: a gate of 1 is the tuned model and 0 the base; what is undone is undone bit for bit."""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from keylayers.doctor.guard import Found, attached
from keylayers.doctor.probe import CheckResult, ModelUnderTest, Skipped, difference, failed, passed, some, spread
from keylayers.errors import KeylayersError
from keylayers.layers.deltas import Delta, Deltas, DenseDelta, LowRankDelta
from keylayers.layers.gating import gated
from keylayers.layers.intervene import scaled, skipped
from keylayers.layers.layer import Layer
from keylayers.layers.structure import parameters_of, walk
from keylayers.layers.tensor_swap import frozen, swapped
from keylayers.training.adapters import LoraSettings

SHARE, SHARE_IN_HALF = 0.05, 0.3
"""Size of the random deltas, relative to the weights; in half precision they must stand out from the rounding."""
HASHED = 2**32
"""Bytes of weights up to which every one is hashed after each change; above, write counters are compared."""
REPORT = "report it: deltas of this architecture are not applied as they should be"


def plain_layers(patient: ModelUnderTest) -> tuple[Layer, ...]:
    """At most `most` layers whose weights other tensors can stand in for. Raises Skipped if there is none."""
    patient.probe()
    present = parameters_of(patient.model)
    plain = [layer for layer in patient.layers if all(present[name].is_floating_point() for name in layer.parameters)]
    if not plain:
        raise Skipped("every weight is stored quantised, so that no delta can be added to it")
    return spread(plain, patient.most)


def gates(patient: ModelUnderTest) -> CheckResult:
    """With a random delta, gates of 1 give the tuned model's output and gates of 0 the base model's."""
    layers = plain_layers(patient)
    base = patient.run()
    told = []
    for kind in ("dense", "low-rank"):
        deltas = _random_deltas(patient, layers, kind == "low-rank")
        if deltas is None:
            continue
        changes = {name: delta for change in deltas.changes for name, delta in change.items()}
        tensors = parameters_of(patient.model)
        with swapped(patient.model, {n: tensors[n].detach() + d.dense().to(tensors[n]) for n, d in changes.items()}):
            tuned = patient.run()
        moved, apart = difference(tuned, base), []
        for gate, wanted in ((1.0, tuned), (0.0, base)):
            with gated(patient.model, deltas, deltas.uniform(gate)):
                apart.append(difference(patient.run(), wanted))
        limit = min(patient.rounding, moved / 3)
        if apart[1] > limit or (apart[0] > limit and moved > 0):
            return failed(
                f"{kind} delta on {len(layers)} layers: gates of 1 differ from the tuned model by {apart[0]:.1e}, "
                f"gates of 0 from the base by {apart[1]:.1e}; the delta itself moves the output by {moved:.1e}",
                REPORT,
            )
        told.append(
            f"{kind} delta on {len(changes)} weights, which moves the output by {moved:.0e}: 1 gives the tuned model "
            f"(to {apart[0]:.0e}), 0 the base (to {apart[1]:.0e})"
        )
    return passed("; ".join(told))


def _random_deltas(patient: ModelUnderTest, layers: Sequence[Layer], thin: bool) -> Deltas | None:
    """A seeded random delta on the largest parameter of each layer; low-rank only on linear modules, else None."""
    present = parameters_of(patient.model)
    linear = {node.name for node in walk(patient.model) if type(node.inner) is nn.Linear}
    share = SHARE if patient.rounding < 1e-3 else SHARE_IN_HALF
    chosen = [layer for layer in layers if not thin or layer.name in linear]
    if not chosen:
        return None
    changes: list[dict[str, Delta]] = []
    for layer in chosen:
        name = max(layer.parameters, key=lambda name: present[name].numel())
        changes.append({name: _thin(present[name], name, share) if thin else _dense(present[name], name, share)})
    return Deltas(tuple(chosen), tuple(changes), {}, "random")


def _noise(name: str, *shape: int) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _dense(weight: Tensor, name: str, share: float) -> DenseDelta:
    size = share * float(weight.detach().double().square().mean().sqrt())
    return DenseDelta(lambda: size * _noise(name, *weight.shape).to(weight))


def _thin(weight: Tensor, name: str, share: float, rank: int = 2) -> LowRankDelta:
    size = share * float(weight.detach().double().square().mean().sqrt())
    up, down = _noise(name, weight.shape[0], rank), _noise(f"{name} down", rank, weight.shape[1])
    return LowRankDelta(up.to(weight), down.to(weight), size / rank**0.5)


def undone(patient: ModelUnderTest) -> CheckResult:
    """After each temporary change, weights, modules, hooks, flags and the output are what they were."""
    patient.probe()
    model, hashed = patient.model, sum(value.nbytes for value in patient.model.parameters()) <= HASHED
    before, whole = Found.of(model, hashed), patient.run()
    kept, left = [], []
    for what, effect in _effects(patient):
        try:
            with effect:
                patient.run()
        except KeylayersError as error:
            left.append(f"{what}: {str(error).split('; ')[0]}")
            continue
        if changed := before.differences(Found.of(model, hashed)):
            return failed(
                f"after {what} was over, this had changed: {some(changed)}", "report it, with the model's name"
            )
        if (apart := difference(patient.run(), whole)) > (0 if patient.rounding < 1e-3 else patient.rounding):
            return failed(f"after {what} was over, the output differs by {apart:.1e}", "report it")
        kept.append(what)
    not_tried = f"; not possible here: {some(left)}" if left else ""
    how = "bit-identical" if hashed else "not written to"
    return passed(f"{how} after {', '.join(kept)}{not_tried}")


def _effects(patient: ModelUnderTest) -> list[tuple[str, AbstractContextManager[object]]]:
    """Every temporary change there is, by name."""
    model, found = patient.model, list[tuple[str, AbstractContextManager[object]]]()
    if patient.blocks:
        found.append(("scaling a block", scaled(model, [patient.blocks[-1]], 0.5)))
        found.append(("skipping a block", skipped(model, [patient.blocks[-1]])))
    found.append(("freezing", frozen(model)))
    try:
        layers = plain_layers(patient)
    except Skipped:
        return found
    deltas = _random_deltas(patient, layers, thin=False)
    if deltas is not None:
        name, delta = next(iter(deltas.changes[0].items()))
        found.append(("other weights", swapped(model, {name: parameters_of(model)[name].detach() + delta.dense()})))
        found.append(("gates", gated(model, deltas, deltas.uniform(0.5))))
    found.append(("LoRA", attached(model, layers, LoraSettings(rank=2))))
    return found
