"""The CKA of every pair of layers: ours beside the pairwise published way, at 300 samples, 32 layers, width 4096."""

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.interleaved import cpu_ratios, cpu_seconds
from keylayers.maths.cka import MinibatchCka, cka_table

SAMPLES, LAYERS, WIDTH, GROUP = 300, 32, 4096, 50
PAIRS = 64
"""Pairs that the published way is timed on, of LAYERS squared; the rest cost the same."""
LEAST = 10.0
"""Times faster than the published way that ours has to be."""
PUBLISHED, GRAMS_ONLY = "published: three HSIC per pair", "limit: Gram matrices alone"
OURS = ("ours, biased", "ours, unbiased", "ours, rbf", "ours, in groups of 50")


def make_layers() -> list[Tensor]:
    """Random hidden states that drift from layer to layer, in float32."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(SAMPLES, WIDTH, generator=generator)
    made = [hidden]
    for _ in range(LAYERS - 1):
        made.append(made[-1] + 0.2 * torch.randn(SAMPLES, WIDTH, generator=generator))
    return made


def published(x: Tensor, y: Tensor) -> Tensor:
    """Linear CKA of one pair by its definition, as released code computes it: Gram matrices made and centred by matrix
    products for each of HSIC(X, Y), HSIC(X, X) and HSIC(Y, Y)."""

    def hsic(a: Tensor, b: Tensor) -> Tensor:
        n = len(a)
        centring = torch.eye(n, dtype=a.dtype) - torch.full((n, n), 1 / n, dtype=a.dtype)
        return ((centring @ (a @ a.T) @ centring) * (centring @ (b @ b.T) @ centring)).sum()

    return hsic(x, y) / (hsic(x, x).sqrt() * hsic(y, y).sqrt())


def by_groups(layers: Sequence[Tensor]) -> Tensor:
    """The streaming form."""
    streamed = MinibatchCka()
    for places in torch.arange(SAMPLES).split(GROUP):
        streamed.add([one[places] for one in layers])
    return streamed.table()


def ways(layers: Sequence[Tensor]) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    pairs = [(index * 17 % LAYERS, index * 29 % LAYERS) for index in range(PAIRS)]
    return {
        PUBLISHED: lambda: [published(layers[a], layers[b]) for a, b in pairs],
        OURS[0]: lambda: cka_table(layers),
        OURS[1]: lambda: cka_table(layers, estimator="unbiased"),
        OURS[2]: lambda: cka_table(layers, kernel="rbf"),
        OURS[3]: lambda: by_groups(layers),
        GRAMS_ONLY: lambda: [x @ x.T for x in (one.double() for one in layers)],
    }


def table(repetitions: int = 3) -> tuple[list[str], bool]:
    """Markdown lines, and whether every limit holds."""
    torch.set_num_threads(1)
    layers = make_layers()
    made = ways(layers)
    times = cpu_seconds(made, repetitions)
    times[PUBLISHED] = [spent * LAYERS**2 / PAIRS for spent in times[PUBLISHED]]
    ratios = {name: cpu_ratios(times[PUBLISHED], times[name]) for name in made}
    difference = max(
        float((cka_table(layers)[a, b] - published(layers[a].double(), layers[b].double())).abs())
        for a, b in ((0, 1), (3, 20), (31, 0))
    )
    lines = [
        f"{SAMPLES} samples, {LAYERS} layers, width {WIDTH}, float32 in; CPU seconds of one thread. The published way "
        f"runs on {PAIRS} of {LAYERS**2} pairs and is scaled. Largest difference from it in float64: {difference:.1e}.",
        "",
        "| the whole table | seconds | times faster (min, max) | required |",
        "|---|---|---|---|",
    ]
    for name in made:
        low, middle, high = ratios[name][0], statistics.median(ratios[name]), ratios[name][-1]
        required = f">= {LEAST:.0f}" if name in OURS else ""
        lines.append(
            f"| {name} | {statistics.median(times[name]):.2f} | {middle:.1f} ({low:.1f}, {high:.1f}) | {required} |"
        )
    fast = all(statistics.median(ratios[name]) >= LEAST for name in OURS)
    return lines, fast and difference < 1e-6


if __name__ == "__main__":
    print("\n".join(table()[0]))
