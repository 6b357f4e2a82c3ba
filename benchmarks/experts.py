"""Changes of single experts: memory held and time taken must grow with their number, not with its square.

A checkpoint pair on disk with fused tensors of E experts, scored expert by expert: each layer reads its own slice. The
memory is that of every distinct storage behind the held changes, counted and not estimated; the time is that of their
norms, the least of several.
"""

import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from keylayers.layers.deltas import Deltas, DenseDelta, deltas_from_checkpoints
from keylayers.layers.layer import Layer
from keylayers.layers.tensors import tensors_on_disk

FEW, MANY, BLOCKS, SIDE = 16, 64, 2, 256
MEMORY, TIME = 1.01, 1.5
"""Most that memory and time may grow by, in units of the growth of the experts' number."""


def deltas_of_experts(count: int, folder: Path, side: int = SIDE, blocks: int = BLOCKS) -> Deltas:
    """The changes of a pair of checkpoints with that many experts a block, one layer each."""
    names = [f"blocks.{block}.experts.weight" for block in range(blocks)]
    sources = []
    for seed, file in enumerate(("base.safetensors", "tuned.safetensors")):
        torch.manual_seed(seed)
        save_file({name: torch.randn(count, side, side) for name in names}, folder / file)
        sources.append(tensors_on_disk(folder / file))
    layers = [
        Layer(f"blocks.{block}.experts[{index}]", block, "experts", (f"{name}[{index}]",), side * side)
        for block, name in enumerate(names)
        for index in range(count)
    ]
    return deltas_from_checkpoints(*sources, layers)


def held_bytes(deltas: Deltas) -> int:
    """Memory of all storages behind the changes, each once."""
    storages = {}
    for change in deltas.changes:
        for delta in change.values():
            assert isinstance(delta, DenseDelta)
            storage = delta.dense().untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def least_seconds(deltas: Deltas, repetitions: int = 5) -> float:
    """Seconds for the norms of all changes."""
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        deltas.norms()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def table() -> tuple[list[str], bool]:
    """Markdown lines, and whether both limits hold."""
    found = {}
    for count in (FEW, MANY):
        with tempfile.TemporaryDirectory() as folder:
            deltas = deltas_of_experts(count, Path(folder))
            found[count] = (held_bytes(deltas.held()), least_seconds(deltas))
    grown = MANY / FEW
    memory, seconds = (found[MANY][place] / found[FEW][place] / grown for place in (0, 1))
    lines = [f"{BLOCKS} blocks, experts of {SIDE} x {SIDE}, fp32.", ""]
    lines += ["| experts | held, MiB | norms, ms |", "|---|---|---|"]
    lines += [f"| {count} | {size / 2**20:.0f} | {1000 * took:.1f} |" for count, (size, took) in found.items()]
    grew = f"{memory * grown:.2f} times the memory and {seconds * grown:.2f} times the time"
    allowed = f"allowed {MEMORY * grown:.2f} and {TIME * grown:.1f}"
    lines += ["", f"For {grown:.0f} times the experts {grew}; {allowed}."]
    return lines, memory <= MEMORY and seconds <= TIME


if __name__ == "__main__":
    text, holds = table()
    print("\n".join(text))
    raise SystemExit(not holds)
