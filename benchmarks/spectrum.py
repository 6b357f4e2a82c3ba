"""Singular values for the weight-only criteria: ours beside `torch.linalg.svdvals` in fp32, one matrix at a time.

Spectrum hands matrices to svdvals as they are stored, mostly wide; turned so that the long side comes first it takes a
fraction of that, so both are shown. `python -m benchmarks.spectrum 4096x11008` prints the table for other shapes.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from keylayers.layers.layer import Layer
from keylayers.layers.tensors import tensors_on_disk
from keylayers.layers.weight_matrices import matrices
from keylayers.maths.spectrum import roots_of_gram, upper_gram
from keylayers.training.memory import peak_bytes, reset_peak

Shape = tuple[int, int]
SHAPES: tuple[Shape, ...] = ((1024, 1024), (4096, 1024), (1024, 4096), (1536, 8960))
"""Square; k or v of Llama-3-8B the other way round, and as stored; down of Qwen2.5-1.5B."""
WIDE, MEMORY = 2.0, 2.0
"""Ratio of the sides from which ours must be faster than svdvals; most memory there, in fp32 copies of the matrix."""
OURS, STORED, TALL = "ours", "svdvals", "svdvals, long side first"
WAYS: dict[str, Callable[[Callable[[], Tensor]], Tensor]] = {
    OURS: lambda load: roots_of_gram(upper_gram(load())),
    STORED: lambda load: torch.linalg.svdvals(load().float()),
    TALL: lambda load: torch.linalg.svdvals(_tall(load().float())),
}
"""Each reads the matrix itself, so that it may let it go."""


def _tall(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] > matrix.shape[1] else matrix.T


def make(shape: Shape) -> Tensor:
    """Noise with a tenth of it in a few directions, in the precision checkpoints have."""
    generator = torch.Generator().manual_seed(0)
    few = torch.randn(shape[0], 8, generator=generator) @ torch.randn(8, shape[1], generator=generator)
    return (0.02 * (torch.randn(shape, generator=generator) + 0.1 * few)).bfloat16()


def measure(shape: Shape) -> dict[str, float]:
    """Median seconds of each way, interleaved; ratios with extremes; difference in largest values; memory."""
    matrix = make(shape)
    WAYS[OURS](lambda: matrix)  # warm-up
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    found: dict[str, Tensor] = {}
    for _ in range(3 if shape[0] * shape[1] < 2**23 else 1):
        for way, run in WAYS.items():
            start = time.perf_counter()
            found[way] = run(lambda: matrix).double()
            times[way].append(time.perf_counter() - start)
    row = {way: statistics.median(taken) for way, taken in times.items()}
    for way in (STORED, TALL):
        ratios = sorted(mine / theirs for mine, theirs in zip(times[OURS], times[way], strict=True))
        row |= {f"of {way}": statistics.median(ratios), f"low {way}": ratios[0], f"high {way}": ratios[-1]}
    row["difference"] = float((found[OURS] - found[STORED]).abs().max() / found[OURS][0])
    return row | {f"memory {way}": _peak_of(way, shape) / (4 * shape[0] * shape[1]) for way in (OURS, STORED)}


def _peak_of(way: str, shape: Shape) -> float:
    """Bytes that one matrix, read from disk, adds to a process of its own."""
    command = [sys.executable, "-m", "benchmarks.spectrum", "peak", way, f"{shape[0]}x{shape[1]}"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(run.stdout.splitlines()[-1])["peak"])


def _print_peak(way: str, shape: Shape) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file({"w.weight": make(shape)}, file)
        source = tensors_on_disk(file)
        WAYS[way](lambda: make((1024, 1024)))  # libraries make their buffers
        reset_peak()
        before = peak_bytes()
        (matrix,) = matrices(source, Layer("w", None, "w", ("w.weight",), shape[0] * shape[1]))
        WAYS[way](matrix.load)
        print(json.dumps({"peak": peak_bytes() - before}))


def table(shapes: Sequence[Shape] = SHAPES) -> tuple[list[str], bool]:
    """Markdown lines, and whether every limit holds."""
    lines = [
        "Per matrix, bf16 on disk. Ours: eigenvalues of the smaller Gram matrix in float64. Where one side is "
        f"{WIDE:g} times the other or more, it must be faster than svdvals and take at most {MEMORY:g} times the "
        "matrix in fp32 (read from disk, in a process of its own). The difference is the largest, in largest singular "
        "values.",
        "",
        "| matrix | ours, s | svdvals, s | ours / svdvals (min, max) | ours / svdvals, long side first (min, max) "
        "| difference | memory of ours | of svdvals |",
        "|---|---|---|---|---|---|---|---|",
    ]
    fine = True
    for shape in shapes:
        row = measure(shape)
        ratios = [
            f"{row[f'of {way}']:.2f} ({row[f'low {way}']:.2f}, {row[f'high {way}']:.2f})" for way in (STORED, TALL)
        ]
        cells = [
            f"{shape[0]} x {shape[1]}",
            f"{row[OURS]:.3f}",
            f"{row[STORED]:.3f}",
            *ratios,
            f"{row['difference']:.0e}",
        ]
        cells += [f"{row[f'memory {way}']:.2f}" for way in (OURS, STORED)]
        lines.append(f"| {' | '.join(cells)} |")
        if max(shape) >= WIDE * min(shape):
            fine &= row[f"of {STORED}"] < 1 and row[f"of {TALL}"] < 1 and row[f"memory {OURS}"] <= MEMORY
    return lines, fine


def _shape(text: str) -> Shape:
    rows, columns = map(int, text.split("x"))
    return rows, columns


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["peak"]:
        _print_peak(sys.argv[2], _shape(sys.argv[3]))
    else:
        body, holds = table([_shape(text) for text in sys.argv[1:]] or SHAPES)
        print("\n".join(body))
        sys.exit(0 if holds else 1)
