"""Gates on the forward pass: it repeats, captures are true, and a skipped block is one left out."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from keylayers.doctor.guard import foreign_hooks
from keylayers.doctor.probe import (
    CheckResult,
    Inputs,
    ModelUnderTest,
    Skipped,
    difference,
    digest,
    failed,
    passed,
    some,
    spread,
)
from keylayers.layers.capturing import capture, first_tensor, hidden_input
from keylayers.layers.intervene import replaced, skipped
from keylayers.layers.structure import module_named, uncompiled, walk

HOOKED = "a hook sits on it: {}; remove it, or expect captures and ablations to show its work"


def repeatable(patient: ModelUnderTest) -> CheckResult:
    """In eval mode, the same input twice gives the same finite output."""
    first, second = patient.run(), patient.run()
    if not bool(torch.isfinite(first).all()):
        return failed(
            f"{int((~torch.isfinite(first)).sum()):,} of {first.numel():,} outputs are not finite, though every weight "
            f"is; {_first_infinite(patient)}",
            "compute in a wider format (`dtype=float32`)",
        )
    apart = difference(first, second)
    if apart <= patient.rounding:
        told = "bit-identical" if apart == 0 else f"equal but for rounding ({apart:.1e}: kernels without a fixed order)"
        return passed(f"the same input twice: {told}, finite; output {tuple(first.shape)}")
    awake = [name or "the model" for name, module in patient.model.named_modules() if module.training]
    asleep = f"; still in training mode after eval(): {some(awake)}" if awake else ""
    return failed(
        f"the same input twice gives outputs that differ by {apart:.1e} of the largest; {_first_differing(patient)}"
        f"{asleep}",
        "make that module deterministic in eval mode (a dropout must follow model.eval()); until then scores are noise",
    )


def _first_differing(patient: ModelUnderTest) -> str:
    """Where two passes part first: a module that got the same and gave something else."""
    one, two = _digests(patient), _digests(patient)
    for (name, kind, before, after), (_, _, before_again, after_again) in zip(one, two, strict=False):
        if before == before_again and after != after_again:
            return f"first in {name or 'the model'} ({kind}), which got the same input"
    return "no single module does it"


def _first_infinite(patient: ModelUnderTest) -> str:
    for name, kind, before, after in _digests(patient):
        if before[1] == before[1] and after[1] - after[1] != 0:
            return f"first in what {name or 'the model'} ({kind}) returns"
    return "no single module does it"


def _digests(patient: ModelUnderTest) -> list[tuple[str, str, tuple[float, float], tuple[float, float]]]:
    """Every module in the order in which they returned, innermost first: name, class, digests of input and output."""
    seen: list[tuple[str, str, tuple[float, float], tuple[float, float]]] = []
    with ExitStack() as stack:
        stack.enter_context(uncompiled(patient.model))
        for node in walk(patient.model):

            def note(module: nn.Module, args: tuple, kwargs: dict, output: object, name: str = node.name) -> None:
                try:
                    before, after = hidden_input(args, kwargs), first_tensor(output)
                except Exception:  # modules that pass no tensor on (rotary tables, caches) have nothing to compare
                    return
                seen.append((name, type(module).__name__, digest(before), digest(after)))

            stack.callback(node.module.register_forward_hook(note, with_kwargs=True).remove)
        patient.run()
    return seen


def captures(patient: ModelUnderTest) -> CheckResult:
    """What is captured at a layer is what the network computes there and goes on from."""
    _, other = patient.probe()
    model, found = patient.model, {node.name: node.module for node in walk(patient.model)}
    plain = [layer.name for layer in patient.layers if type(found.get(layer.name)) in (nn.Linear, Conv1D)]
    chosen, notes = spread(plain, patient.most), []
    with capture(model, chosen) as seen:
        whole = patient.run()
    hooked, worst = foreign_hooks(model), 0.0
    for name in (name for name in chosen if name in seen.outputs):
        apart = difference(_by_hand(found[name], seen.inputs[name]), seen.outputs[name])
        if apart > patient.rounding:
            why = HOOKED.format(hooked[name][0]) if name in hooked else "check the module's forward"
            return failed(f"{name}: captured input x weight differs from captured output by {apart:.1e}", why)
        worst = max(worst, apart)
    if chosen:
        notes.append(f"input x weight = output in {len(chosen)} of {len(plain)} linear layers (to {worst:.0e})")
    if patient.blocks:
        notes += [_going_on(patient, other, whole), _stopping(patient)]
    if broken := [note for note in notes if note.startswith("NOT ")]:
        return failed("; ".join(broken).replace("NOT ", ""), "check the hooks and the forward of that block")
    return passed("; ".join(notes)) if notes else _nothing()


def _nothing() -> CheckResult:
    raise Skipped("the network has neither plain linear layers nor blocks")


def _by_hand(module: Any, x: Tensor) -> Tensor:
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    return functional.linear(x.to(weight.dtype), weight, module.bias)


def _going_on(patient: ModelUnderTest, other: Inputs, whole: Tensor) -> str:
    """Another input's pass, given what the last block returned in the first: it must end in the first's output."""
    last = patient.blocks[-1]
    with capture(patient.model, [last]) as seen:
        patient.run()
    kept = seen.outputs[last]
    with replaced(patient.model, {last: lambda before, after: kept}):
        apart = difference(patient.run(other), whole)
    if apart <= patient.rounding:
        return f"the model's output follows from what {last} was seen to return"
    return f"NOT what {last} was seen to return decides the model's output: they differ by {apart:.1e}"


def _stopping(patient: ModelUnderTest) -> str:
    """A pass that ends once the middle block was seen must have seen the same."""
    middle = patient.blocks[len(patient.blocks) // 2]
    with capture(patient.model, [middle]) as complete:
        patient.run()
    with capture(patient.model, [middle], stop=True) as early:
        patient.run()
    same = difference(early.outputs[middle], complete.outputs[middle]) <= patient.rounding
    return f"{'' if same else 'NOT '}stopping early at {middle} sees the same"


def skipping(patient: ModelUnderTest) -> CheckResult:
    """A skipped block passes its input on, and the network is then the one without that block."""
    patient.probe()
    with capture(patient.model, patient.blocks) as seen:
        patient.run()
    shapes = {name: (seen.inputs[name].shape, seen.outputs[name].shape) for name in seen.outputs}
    keeping = [name for name in patient.blocks if name in shapes and shapes[name][0] == shapes[name][1]]
    if not keeping:
        raise Skipped("no block returns the shape it takes, so none can be skipped")
    chosen = spread(keeping, patient.most)
    for name in chosen:
        with skipped(patient.model, [name]):
            ours = patient.run()
        with _passing_on(patient.model, name):
            apart = difference(ours, patient.run())
        if apart > patient.rounding:
            return failed(f"{name} skipped differs from passing its input on by hand by {apart:.1e}", "report it")
    out, unbuilt = list[str](), list[str]()
    for name in _last_of_stacks(keeping, patient.blocks):
        with skipped(patient.model, [name]):
            ours = patient.run()
        without = _without(patient, name)
        if without is None:
            unbuilt.append(name)
        elif (apart := difference(ours, without)) > patient.rounding:
            return failed(
                f"{name} skipped differs from the network built without it by {apart:.1e}",
                "something outside the block depends on it; read its ablation as more than the block's own effect",
            )
        else:
            out.append(name)
    told = f"; equal to the network without {some(out)}" if out else ""
    told += f"; cannot be built without {some(unbuilt)}" if unbuilt else ""
    odd = len(patient.blocks) - len(keeping)
    told += f"; {odd} blocks change the shape and cannot be skipped" if odd else ""
    return passed(f"identity in place of {len(chosen)} of {len(patient.blocks)} blocks is passing the input on{told}")


@contextmanager
def _passing_on(model: nn.Module, name: str) -> Iterator[None]:
    """A block whose returned hidden states are exchanged for those it got, by a hook of a few lines."""

    def swap(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        got = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, Tensor):
            return got
        return (got, *tuple(output)[1:])

    handle = module_named(model, name).register_forward_hook(swap, with_kwargs=True)
    try:
        with uncompiled(model):
            yield
    finally:
        handle.remove()


def _last_of_stacks(keeping: list[str], blocks: tuple[str, ...]) -> list[str]:
    """The last block of each stack, whose absence moves no other block's number."""
    ends = {name.rpartition(".")[0]: name for name in blocks}
    return [name for name in ends.values() if name in keeping]


def _without(patient: ModelUnderTest, name: str) -> Tensor | None:
    """The output of the network with the block taken out of its list; None where it cannot run so."""
    place, _, key = name.rpartition(".")
    members = next(node.inner for node in walk(patient.model) if node.name == place)._modules
    held = dict(members)
    try:
        del members[key]
        return patient.run()
    except Exception:  # whatever the network misses: it cannot be built so
        return None
    finally:
        members.clear()
        members.update(held)
