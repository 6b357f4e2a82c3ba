"""What costs are measured on: batches of the size that is asked about, their loss, the memory there is."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from keylayers.doctor.probe import Inputs, loss_for, output_of
from keylayers.measures.objective import Batch, Loss
from keylayers.training.adapters import LoraSettings
from keylayers.training.memory import free_bytes

ROOM = 0.9
"""Share of the free memory that may be planned for; the rest is for temporary buffers."""


@dataclass(frozen=True)
class Workload:
    """What the figures are for."""

    batch: Inputs
    """Sequences (or images) of one step, of the length that will be used."""
    small: Inputs
    """One sequence of that length."""
    pair: Inputs
    """Two."""
    size: int
    """Sequences in `batch`."""
    batches: int
    """Batches of calibration records that a criterion looks at."""
    lora: LoraSettings


def loss_of(model: nn.Module, inputs: Inputs) -> Callable[[], Tensor]:
    """The mean loss of a batch; the mean of the output where the network has no logits."""
    suited = loss_for(model, inputs)
    if suited is None:
        return lambda: output_of(model, inputs).double().square().mean()
    return lambda: _mean(suited[0], model, suited[1])


def _mean(loss: Loss, model: nn.Module, batch: Batch) -> Tensor:
    summed, terms = loss(model, batch)
    return summed / terms


def fits(extra: int) -> bool | None:
    """Whether that many more bytes fit in the memory that is free; None where nothing says how much is."""
    free = free_bytes()
    return None if free is None else extra <= ROOM * free


def workload(
    maker: Callable[[int, int, int], Inputs], batch: int, seq: int, records: int, lora: LoraSettings
) -> Workload:
    """Seeded inputs of the sizes that are asked about."""
    count = max(1, -(-records // batch))  # rounded up
    return Workload(maker(batch, seq, 0), maker(1, seq, 1), maker(2, seq, 2), batch, count, lora)
