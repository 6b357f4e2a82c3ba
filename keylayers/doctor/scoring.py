"""Seconds and bytes of scoring: a few passes are measured, and each criterion says how many it makes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from keylayers import criteria
from keylayers.doctor.costs import Workload, loss_of
from keylayers.doctor.guard import attached
from keylayers.doctor.probe import ModelUnderTest, output_of
from keylayers.errors import KeylayersError
from keylayers.layers.adapted import deltas_from_adapter
from keylayers.layers.deltas import Deltas, LowRankDelta
from keylayers.layers.gating import gated
from keylayers.layers.layer import Layer
from keylayers.layers.prefix import BlockOutputs, block_outputs, resumed
from keylayers.layers.structure import parameters_of
from keylayers.layers.tensor_swap import frozen
from keylayers.training.activations import kept_for_backward, seconds_of
from keylayers.training.adapters import LoraSettings


@dataclass(frozen=True)
class Passes:
    """Seconds of one batch, and the memory it takes beside the weights."""

    forward: float
    backward: float
    """Forward and backward through activations alone: everything frozen, gradients run down to the embeddings."""
    gated_forward: float | None
    """With a gated low-rank delta on every layer, as criteria run it; None where peft cannot adapt the layers."""
    gated_backward: float | None
    activations: int
    """Bytes kept for the backward pass through gates, for one batch."""
    outputs: int
    """Bytes of all blocks' outputs for one batch."""
    resumed: float
    """Seconds of a forward pass in which every block answers from kept outputs."""
    deltas: int
    """Bytes of the low-rank deltas."""


@dataclass(frozen=True)
class Scoring:
    """What one criterion takes."""

    criterion: str
    forwards: float | None
    """Passes of one batch through the whole network; None where the criterion does not say."""
    backwards: float | None
    seconds: float | None
    bytes: int | None
    """Beside the weights."""


def measure_passes(patient: ModelUnderTest, layers: Sequence[Layer], work: Workload) -> Passes:
    """Times the passes that scoring is made of; the model is left as it was."""
    model = patient.model

    def forward() -> Tensor:
        return output_of(model, work.batch)

    with frozen(model), torch.no_grad():
        plain = seconds_of(forward)
        with block_outputs(model) as outputs:
            forward()
        kept = sum(_tensor_bytes(value) for value in outputs.values())
        resuming = seconds_of(partial(_resumed, patient, outputs, forward))
    loss = loss_of(model, work.batch)
    with frozen(model), torch.enable_grad(), _from_the_start(model):
        backward = seconds_of(lambda: loss().backward())
    try:
        deltas = _zero_deltas(model, layers, work.lora)
    except KeylayersError:
        return Passes(plain, backward, None, None, 0, kept, resuming, 0)
    gates = deltas.uniform(1.0).requires_grad_()
    with frozen(model), gated(model, deltas, gates):
        with torch.no_grad():
            gated_forward = seconds_of(forward)
        with torch.enable_grad():
            gated_backward = seconds_of(lambda: loss().backward())
            with kept_for_backward(model) as graph:
                loss()
    return Passes(
        plain, backward, gated_forward, gated_backward, graph.bytes, kept, resuming, _delta_bytes(model, deltas)
    )


def _resumed(patient: ModelUnderTest, outputs: BlockOutputs, forward: Callable[[], Tensor]) -> None:
    with resumed(patient.model, outputs, None):
        forward()


def _tensor_bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_tensor_bytes, value)) if isinstance(value, tuple | list) else 0


@contextmanager
def _from_the_start(model: nn.Module) -> Iterator[None]:
    """Gradients begin at the first module that makes real numbers (the embeddings, the first convolution)."""
    begun: list[Tensor] = []

    def begin(module: nn.Module, args: object, output: object) -> None:
        if not begun and isinstance(output, Tensor) and output.is_floating_point() and torch.is_grad_enabled():
            begun.append(output.requires_grad_())

    def end(module: nn.Module, args: object, output: object) -> None:
        begun.clear()

    with ExitStack() as stack:
        for module in model.modules():
            if not list(module.children()) and list(module.parameters(recurse=False)):
                stack.callback(module.register_forward_hook(begin).remove)
        stack.callback(model.register_forward_hook(end).remove)
        yield


def _zero_deltas(model: nn.Module, layers: Sequence[Layer], lora: LoraSettings) -> Deltas:
    """Low-rank deltas of every layer as stage 1 would give them, before any step."""
    with attached(model, layers, lora) as adapted:
        return deltas_from_adapter(adapted, layers, unchanged=True)  # costs what a trained one costs


def _delta_bytes(model: nn.Module, deltas: Deltas) -> int:
    """Memory of the deltas when all are held; those of fused experts and convolutions are as large as the weights."""
    own = parameters_of(model)
    pairs = [(name, delta) for change in deltas.changes for name, delta in change.items()]
    return sum(
        delta.up.nbytes + delta.down.nbytes if isinstance(delta, LowRankDelta) else own[name.partition("[")[0]].nbytes
        for name, delta in pairs
    )


def score_forecasts(passes: Passes, layers: Sequence[Layer], batches: int) -> list[Scoring]:
    """Every criterion's passes as it declares them, and what they take here."""
    found = []
    for name in criteria.CRITERIA:
        criterion = criteria.get(name)
        if criterion.work is None:
            found.append(Scoring(name, None, None, None, None))
            continue
        work = criterion.work(layers, criterion.settings(), batches)
        forward = passes.forward if passes.gated_forward is None else passes.gated_forward
        started = passes.resumed + work.share * max(0.0, forward - passes.resumed)
        backward = passes.backward if passes.gated_backward is None else passes.gated_backward
        size = passes.deltas if "deltas" in criterion.needs else 0
        size += passes.activations if work.backwards else passes.outputs if work.partial else 0
        seconds = work.forwards * forward + work.partial * started + work.backwards * backward
        found.append(Scoring(name, work.all_forwards, work.backwards, seconds, size))
    return found
