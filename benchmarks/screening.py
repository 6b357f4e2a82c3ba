"""Screening a stream of images at three layers, beside bare forwards; and what memory a longer stream takes."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.interleaved import cpu_ratios, cpu_seconds
from keylayers.actions.screen_fitting import fit_screen
from keylayers.actions.screening import Screen, ScreenSettings
from keylayers.layers.naming import named_layers
from keylayers.measures.features import features_of
from keylayers.models.cifar import resnet20
from keylayers.scores.selection import Selection
from keylayers.training.memory import peak_bytes, reset_peak

BATCH, BATCHES, CLASSES, LONGER = 64, 4, 10, 8
PLAIN, SCREENED, PENULTIMATE = "bare forwards", "screened at blocks 7, 8 and 9", "screened at block 9 alone"
SCREEN, KEEP = "screen", "keep"
LIMIT = 1.3
"""Most that screening may cost, in bare forwards."""
GROWTH = 2.0
"""MiB that the peak may grow with the stream: less than the features of one batch at one of the blocks it sees."""
PROCESSES = 5
"""In some the allocator takes a few MiB more, however long the stream."""
NOTICED = 10.0
"""MiB that keeping all features must show; else the measurement sees nothing, and a small figure would say nothing."""


def make_stream(batches: int, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    """Random images, made as they are asked for."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        yield {"x": torch.rand(BATCH, 3, 32, 32, generator=generator)}


def make_screen(model: nn.Module, blocks: list[int]) -> Screen:
    """Every image's class is its number: a random network says one class of all."""
    reference = list(make_stream(2))

    def numbered(batch: object, logits: Tensor) -> Tensor:
        return torch.arange(len(logits)) % CLASSES

    chosen = Selection.of(named_layers(model, "block"), blocks=blocks)
    fitted = fit_screen(model, chosen, reference, settings=ScreenSettings("tau", members="predicted"), predict=numbered)
    return Screen(**{**{key: value for key, value in vars(fitted).items() if key != "_placed"}, "own_predict": False})


def ways(model: nn.Module) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    three, one = make_screen(model, [6, 7, 8]), make_screen(model, [8])
    data = list(make_stream(BATCHES))

    def bare() -> None:
        with torch.no_grad():
            for batch in data:
                model(**batch)

    return {
        PLAIN: bare,
        SCREENED: lambda: [found.flags.sum() for found in three.stream(model, data)],
        PENULTIMATE: lambda: [found.flags.sum() for found in one.stream(model, data)],
    }


def grown(way: str) -> float:
    """MiB by which a fresh process's peak rises when the stream is longer, screening it or keeping its features."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.screening", way], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def grow(way: str) -> float:
    """The same, of this process."""
    model, peaks, kept = make_model(), [], []
    reset_peak()
    screen = make_screen(model, [6, 7, 8])
    for batches in (BATCHES, BATCHES * LONGER):
        for batch in make_stream(batches):
            if way == KEEP:
                with torch.no_grad():
                    kept.append(features_of(model, batch, screen.layers)[0])
            else:
                screen.flags(model, batch)
        peaks.append(peak_bytes() / 2**20)
    return peaks[1] - peaks[0]


def make_model() -> nn.Module:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return resnet20().eval()


def table(repetitions: int = 5) -> tuple[list[str], bool]:
    """Markdown lines, and whether the limits hold."""
    model = make_model()
    made = ways(model)
    times = cpu_seconds(made, repetitions)
    more, kept = sorted(grown(SCREEN) for _ in range(PROCESSES)), grown(KEEP)
    lines = [
        f"ResNet-20, {BATCHES} batches of {BATCH} images of 32 x 32, {CLASSES} classes, features flattened, fp32; CPU "
        f"seconds of one thread. Peak memory of a stream {LONGER} times as long: {statistics.median(more):+.1f} MiB "
        f"({more[0]:+.1f} to {more[-1]:+.1f} in {PROCESSES} processes; median allowed {GROWTH}); "
        f"with its features kept, as released: {kept:+.0f} MiB (must show: {NOTICED:.0f} or more).",
        "",
        "| pass over the stream | seconds | of bare forwards (min, max) | allowed |",
        "|---|---|---|---|",
    ]
    middles = {}
    for name in made:
        ratios = cpu_ratios(times[name], times[PLAIN])
        middles[name] = statistics.median(ratios)
        allowed = f"<= {LIMIT}" if name == SCREENED else ""
        seconds, spread = statistics.median(times[name]), f"{ratios[0]:.2f}, {ratios[-1]:.2f}"
        lines.append(f"| {name} | {seconds:.2f} | {middles[name]:.2f} ({spread}) | {allowed} |")
    return lines, middles[SCREENED] <= LIMIT and statistics.median(more) <= GROWTH and kept >= NOTICED


if __name__ == "__main__":
    print(grow(sys.argv[1]) if sys.argv[1:] else "\n".join(table()[0]))
