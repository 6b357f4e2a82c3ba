"""Seconds and bytes of one tuning step: parameters, gradients, Adam's moments, activations down to the lowest block."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from keylayers.actions.freezing import forecast, selected_parameters
from keylayers.doctor.costs import ROOM, Workload, loss_of
from keylayers.doctor.guard import attached
from keylayers.doctor.probe import Inputs, ModelUnderTest
from keylayers.errors import KeylayersError
from keylayers.layers.tensor_swap import frozen
from keylayers.scores.selection import Selection
from keylayers.training.activations import adam_bytes, adam_seconds, kept_for_backward, seconds_of
from keylayers.training.memory import free_bytes


@dataclass(frozen=True)
class Tuning:
    """One step of tuning a selection with one method."""

    policy: str
    method: str
    lowest_block: int | None
    trainable: int = 0
    weights: int = 0
    """Bytes of the model and its adapters; they are in memory already."""
    gradients: int = 0
    moments: int = 0
    """Adam's two."""
    activations: int = 0
    """Forecast for the batch from what one and two sequences keep."""
    backward: float | None = None
    """Seconds of forward and backward, measured at the batch size; None where that would not fit."""
    optimiser: float = 0.0
    refused: str = ""
    """Why it cannot be done."""

    @property
    def extra(self) -> int:
        """Bytes beside the model: gradients, moments, activations."""
        return self.gradients + self.moments + self.activations

    @property
    def step(self) -> float | None:
        """Seconds of one step."""
        return None if self.backward is None else self.backward + self.optimiser


def tune_forecast(patient: ModelUnderTest, selection: Selection, method: str, work: Workload) -> Tuning:
    """A training step of the selection: what it takes in memory, and how long its parts take.

    Activations are measured on one and on two sequences, and taken on in proportion; nothing is run at the full batch
    size that would not fit. The model is left as it was.
    """
    lowest = min((layer.block for layer in selection.chosen if layer.block is not None), default=None)
    try:
        with ExitStack() as stack:
            model = patient.model
            if method == "full":
                chosen = list(selected_parameters(model, selection).values())
                stack.enter_context(frozen(model))
            else:
                model = stack.enter_context(attached(model, selection.chosen, work.lora))
                chosen = [value for value in model.parameters() if value.requires_grad]
                stack.enter_context(_gradients_kept(model))
            stack.enter_context(torch.enable_grad())
            for value in chosen:
                value.requires_grad_(True)
            return _measured(model, selection, method, lowest, chosen, work)
    except KeylayersError as error:
        return Tuning(selection.policy, method, lowest, refused=str(error))


def _measured(
    model: nn.Module,
    selection: Selection,
    method: str,
    lowest: int | None,
    chosen: list[nn.Parameter],
    work: Workload,
) -> Tuning:
    plan = forecast(model, selection, chosen)
    gradients, moments = adam_bytes(chosen)
    unique = {id(value): value for value in model.parameters()}
    one, two = (_kept(model, inputs) for inputs in (work.small, work.pair))
    activations = max(one, one + (two - one) * (work.size - 1))
    free = free_bytes()
    backward = None
    if free is None or gradients + activations < ROOM * free:
        loss = loss_of(model, work.batch)

        def step() -> None:
            loss().backward()
            for value in chosen:
                value.grad = None

        backward = seconds_of(step)
    return Tuning(
        selection.policy,
        method,
        lowest,
        plan.trainable,
        sum(value.numel() * value.element_size() for value in unique.values()),
        gradients,
        moments,
        activations,
        backward,
        adam_seconds(chosen),
    )


def _kept(model: nn.Module, inputs: Inputs) -> int:
    with kept_for_backward(model) as graph:
        loss_of(model, inputs)()
    return graph.bytes


@contextmanager
def _gradients_kept(model: nn.Module) -> Iterator[None]:
    """Puts every gradient back that was there before."""
    before = [(value, value.grad) for value in model.parameters()]
    try:
        yield
    finally:
        for value, gradient in before:
            value.grad = gradient
