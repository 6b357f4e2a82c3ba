"""What choosing layers costs as the model grows: ILA's two stages whole, and a choice from the beginning of stage 1."""

import statistics
import time

from benchmarks.stage_two import BARE, STAGE_ONE, Shape, make_model, make_step

STAGE_TWO = "stage 2, LoRA deltas"
SHAPES = (
    Shape(128, 4, 4, 2),
    Shape(256, 4, 4, 2),
    Shape(512, 4, 8, 4),
    Shape(512, 8, 8, 4),
    Shape(768, 4, 12, 4),
    Shape(768, 8, 12, 4),
)
STEPS, MASK_STEPS, SHARE, BATCHES = 1000, 100, 0.1, 4
"""Of a whole LoRA training; of learning the masks; share of stage 1 behind an early choice; batches it is scored on."""


def table(repetitions: int = 5) -> tuple[list[str], bool]:
    """Markdown lines; nothing here can fail a limit."""
    lines = [
        f"Seconds per step of 8 x 256 tokens, fp32. Cost of choosing, in trainings of {STEPS:,} steps:",
        f"*whole*, stage 1 to its end and {MASK_STEPS} steps of stage 2; *early*, {SHARE:.0%} of stage 1 and a",
        f"midpoint gradient over {BATCHES} batches, one step of stage 2 each.",
        "",
        "| width | blocks | parameters | stage 1 | stage 2 | stage 2 / stage 1 | stage 1 / bare | whole | early |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        size = sum(value.numel() for value in make_model(shape).parameters())
        seconds = _seconds(shape, repetitions)
        one, two, bare = (seconds[kind] for kind in (STAGE_ONE, STAGE_TWO, BARE))
        whole, early = 1 + MASK_STEPS * two / (STEPS * one), SHARE + BATCHES * two / (STEPS * one)
        lines.append(
            f"| {shape.width} | {shape.blocks} | {size / 1e6:.1f} M | {one:.3f} | {two:.3f} | {two / one:.2f} "
            f"| {one / bare:.2f} | {whole:.2f} | {early:.3f} |"
        )
    return lines, True


def _seconds(shape: Shape, repetitions: int) -> dict[str, float]:
    """Median seconds per step of each kind, interleaved, the first round left out."""
    steps = {kind: make_step(kind, shape) for kind in (BARE, STAGE_ONE, STAGE_TWO)}
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(repetitions + 1):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            times[kind].append(time.perf_counter() - start)
    return {kind: statistics.median(each[1:]) for kind, each in times.items()}


if __name__ == "__main__":
    print("\n".join(table()[0]))
