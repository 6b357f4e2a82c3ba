"""Correctness checks on a user's own model, before it is trusted: one after another, each shown as it is done."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from keylayers.doctor import effects, forward, structure, text, undo
from keylayers.doctor import gradient_flow as gradient
from keylayers.doctor.guard import Found, same_random_numbers
from keylayers.doctor.probe import CheckResult, ModelUnderTest, Skipped, failed, passed, some
from keylayers.errors import KeylayersError
from keylayers.measures.loss import evaluating


@dataclass(frozen=True)
class Check:
    """A question about a model that has a yes or a no."""

    name: str
    run: Callable[[ModelUnderTest], CheckResult]
    needs: tuple[str, ...] = ()
    """Checks without which an answer would mean nothing: where any of them fails, this one is skipped."""


RUNS = ("finite weights", "repeatable")

CHECKS = (
    Check("names", structure.names),
    Check("tied weights", structure.tied_weights),
    Check("fused parts", structure.fused_parts),
    Check("hooks", structure.hooks),
    Check("finite weights", structure.finite_weights),
    Check("repeatable", forward.repeatable, ("finite weights",)),
    Check("capture", forward.captures, RUNS),
    Check("skipping", forward.skipping, RUNS),
    Check("every part acts", effects.acts, RUNS),
    Check("gates", undo.gates, RUNS),
    Check("undo", undo.undone, RUNS),
    Check("gradient reaches", gradient.gradients, (*RUNS, "every part acts")),
    Check("gradient is right", gradient.slopes, (*RUNS, "every part acts", "gradient reaches")),
    Check("tokenizer", text.tokenizer),
    Check("padding", text.padding, RUNS),
)
LEFT_AS_FOUND = "left as found"


def examine(model: ModelUnderTest, checks: tuple[Check, ...] = CHECKS) -> Iterator[CheckResult]:
    """Yields the outcome of every check as it is known, and last whether the model is as it was found.

    The model runs in eval mode; nothing stops the other checks when one fails or breaks off with an error.
    """
    before = Found.of(model.model)
    for check in checks:
        yield _guarded(model, check)
    changed = before.differences(Found.of(model.model))
    result = (
        failed(f"{len(changed)} things differ from before: {some(changed)}", "load the model afresh, and report this")
        if changed
        else passed("weights, modules, hooks, flags and gradients are what they were")
    )
    yield replace(result, name=LEFT_AS_FOUND)


def _guarded(model: ModelUnderTest, check: Check) -> CheckResult:
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(same_random_numbers())
        stack.enter_context(evaluating(model.model))
        stack.enter_context(torch.no_grad())
        try:
            blocking = [name for name in check.needs if _fails(model, name)]
            if blocking:
                raise Skipped(f"would mean nothing while {blocking[0]!r} does not hold")
            result = check.run(model)
        except Skipped as reason:
            result = CheckResult("", "skip", str(reason))
        except (Exception, KeylayersError) as error:
            result = failed(
                f"broke off with {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                "if the model runs outside the doctor, report this with the name of its architecture",
            )
    result = replace(result, name=check.name, seconds=round(time.perf_counter() - start, 3))
    model.findings[check.name] = result
    return result


def _fails(model: ModelUnderTest, name: str) -> bool:
    return name in model.findings and model.findings[name].status == "fail"
