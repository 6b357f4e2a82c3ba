"""What one training step takes: the bytes that a backward pass keeps, and seconds, measured on the model itself."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

OPTIMISER_CAP = 2**26
"""Bytes of parameters on which an optimiser step is timed; more are taken in proportion."""
LONG = 3.0
"""Seconds after which a pass is timed once, not three times."""


@dataclass
class Kept:
    """What the graph of a forward pass holds for its backward pass."""

    bytes: int = 0
    """Each tensor's memory once, however often it is kept; the model's own weights apart."""


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[Kept]:
    """Counts the bytes that forward passes inside the block keep for their backward passes.

    Tensors are held until the block ends, so that none is counted under another's address.
    """
    own = {_address(value) for value in (*model.parameters(), *model.buffers())}
    kept, held = Kept(), dict[int, Tensor]()

    def pack(tensor: Tensor) -> Tensor:
        address = _address(tensor)
        if address not in own and address not in held and not tensor.is_meta:
            held[address] = tensor.detach()
            kept.bytes += tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def seconds_of(work: Callable[[], object], warm: bool = True) -> float:
    """Wall-clock seconds of a piece of work: the median of three after one to warm up, or that one where it is long."""
    first = _timed(work)
    if first > LONG or not warm:
        return first
    return median(_timed(work) for _ in range(3))


def _timed(work: Callable[[], object]) -> float:
    _finish()
    start = time.perf_counter()
    work()
    _finish()
    return time.perf_counter() - start


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def adam_seconds(parameters: Sequence[Tensor]) -> float:
    """Seconds of one AdamW step on tensors of these shapes; the given ones are not touched."""
    some, size, total = list[Tensor](), 0, sum(value.nbytes for value in parameters)
    for value in parameters:
        if size and size + value.nbytes > OPTIMISER_CAP:
            break
        some.append(value)
        size += value.nbytes
    if not size:
        return 0.0
    twins = [torch.zeros_like(value, requires_grad=True) for value in some]
    for twin in twins:
        twin.grad = torch.ones_like(twin)
    optimiser = torch.optim.AdamW(twins, lr=1e-3)
    return seconds_of(optimiser.step) * total / size


def adam_bytes(parameters: Iterable[Tensor]) -> tuple[int, int]:
    """(bytes of gradients, bytes of Adam's two moments) for parameters; both in the parameters' own precision."""
    size = sum(value.numel() * value.element_size() for value in parameters)
    return size, 2 * size
