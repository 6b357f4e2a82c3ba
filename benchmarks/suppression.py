"""Every skip at eleven factors: parts the factor cannot reach computed once, beside whole forward passes."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.interleaved import cpu_ratios, cpu_seconds
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.skip_suppression import STEPS, SkipSuppression, score_skip_suppression
from keylayers.layers.naming import named_layers
from keylayers.layers.skips import scaled_skips
from keylayers.layers.tensor_swap import frozen
from keylayers.measures.backdoor import misses

WIDTHS, DEPTHS, SIZE, IMAGES = (32, 64, 128, 256), (2, 2, 2, 2), 64, 50
POINTS = sum(DEPTHS) * (STEPS + 1)
PLAIN, SCAN = "whole forward passes", "skip_suppression"
LIMIT = 2.0
"""Least by which the scan must be faster."""


def make_model() -> nn.Module:
    """ResNet-18 of half the width, with random weights."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=WIDTHS[0], hidden_sizes=list(WIDTHS), depths=list(DEPTHS), layer_type="basic", num_labels=10
    )
    return ResNetForImageClassification(config).eval()


def make_data(model: nn.Module) -> list[dict[str, Tensor]]:
    """Random images labelled as the model answers them."""
    x = torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return [{"pixel_values": x, "labels": model(x).logits.argmax(1)}]


def ways() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    model = make_model()
    data, skips = make_data(model), named_layers(model, "skip")
    evidence = Evidence(model=model, data=data, granularity="skip")

    def plain() -> None:
        with frozen(model), torch.no_grad():
            for batch in data:
                for skip in skips:
                    for step in range(STEPS + 1):
                        with scaled_skips(model, [skip], 1 - step / STEPS):
                            misses(model, batch)

    return {PLAIN: plain, SCAN: lambda: score_skip_suppression(evidence, skips, SkipSuppression())}


def table(repetitions: int = 3) -> tuple[list[str], bool]:
    """Markdown lines, and whether the limit holds."""
    torch.set_num_threads(1)
    made = ways()
    times = cpu_seconds(made, repetitions)
    lines = [
        f"ResNet-18 shape, widths {WIDTHS}, {sum(DEPTHS)} skips x {STEPS + 1} factors = {POINTS} points, {IMAGES} "
        f"images of {SIZE} x {SIZE}, fp32; CPU seconds of one thread.",
        "",
        "| scan | seconds | times faster than whole passes (min, max) | wanted |",
        "|---|---|---|---|",
    ]
    middles = {}
    for name in made:
        ratios = cpu_ratios(times[PLAIN], times[name])
        middles[name] = statistics.median(ratios)
        wanted = f">= {LIMIT:g}" if name == SCAN else ""
        seconds, spread = statistics.median(times[name]), f"{ratios[0]:.2f}, {ratios[-1]:.2f}"
        lines.append(f"| {name} | {seconds:.2f} | {middles[name]:.2f} ({spread}) | {wanted} |")
    return lines, middles[SCAN] >= LIMIT


if __name__ == "__main__":
    print("\n".join(table()[0]))
