"""Correctness gates on a user's own model, before it is trusted: one after another, each shown as it is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from keylayers.doctor import effects, forward, structure, text, undo
from keylayers.doctor import gradient_flow as gradient
from keylayers.doctor.guard import Found, same_random_numbers
from keylayers.doctor.probe import Check, Patient, Skipped, failed, passed, some
from keylayers.errors import KeylayersError
from keylayers.measures.loss import evaluating


@dataclass(frozen=True)
class Gate:
    """A question about a model that has a yes or a no."""

    name: str
    run: Callable[[Patient], Check]
    needs: tuple[str, ...] = ()
    """Gates without which an answer would mean nothing: where one of them fails, this one is skipped."""


RUNS = ("finite weights", "repeatable")

GATES = (
    Gate("names", structure.names),
    Gate("tied weights", structure.tied_weights),
    Gate("fused parts", structure.fused_parts),
    Gate("hooks", structure.hooks),
    Gate("finite weights", structure.finite_weights),
    Gate("repeatable", forward.repeatable, ("finite weights",)),
    Gate("capture", forward.captures, RUNS),
    Gate("skipping", forward.skipping, RUNS),
    Gate("every part acts", effects.acts, RUNS),
    Gate("gates", undo.gates, RUNS),
    Gate("undo", undo.undone, RUNS),
    Gate("gradient reaches", gradient.gradients, (*RUNS, "every part acts")),
    Gate("gradient is right", gradient.slopes, (*RUNS, "every part acts", "gradient reaches")),
    Gate("tokenizer", text.tokenizer),
    Gate("padding", text.padding, RUNS),
)
LEFT_AS_FOUND = "left as found"


def examine(patient: Patient, gates: tuple[Gate, ...] = GATES) -> Iterator[Check]:
    """Yields the outcome of every gate as it is known, and last whether the model is as it was found.

    The model runs in eval mode; nothing stops the other gates when one fails or breaks off with an error.
    """
    before = Found.of(patient.model)
    for gate in gates:
        yield _guarded(patient, gate)
    changed = before.differences(Found.of(patient.model))
    check = (
        failed(f"{len(changed)} things differ from before: {some(changed)}", "load the model afresh, and report this")
        if changed
        else passed("weights, modules, hooks, flags and gradients are what they were")
    )
    yield replace(check, name=LEFT_AS_FOUND)


def _guarded(patient: Patient, gate: Gate) -> Check:
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(same_random_numbers())
        stack.enter_context(evaluating(patient.model))
        stack.enter_context(torch.no_grad())
        try:
            blocking = [name for name in gate.needs if _fails(patient, name)]
            if blocking:
                raise Skipped(f"would mean nothing while {blocking[0]!r} does not hold")
            check = gate.run(patient)
        except Skipped as reason:
            check = Check("", "skip", str(reason))
        except (Exception, KeylayersError) as error:
            check = failed(
                f"broke off with {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                "if the model runs outside the doctor, report this with the name of its architecture",
            )
    check = replace(check, name=gate.name, seconds=round(time.perf_counter() - start, 3))
    patient.findings[gate.name] = check
    return check


def _fails(patient: Patient, name: str) -> bool:
    return name in patient.findings and patient.findings[name].status == "fail"
