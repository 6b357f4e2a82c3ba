"""How soon commands answer that need no model: beside what typer, numpy and scipy take by themselves in a process."""

import resource
import statistics
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.interleaved import cpu_ratios, cpu_seconds
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.prefix import BlockOutputs, resumed
from keylayers.scores import LayerScores, agreement

OPTIONS = ", ".join(f"option{index}: int = typer.Option({index}, help='A word.')" for index in range(20))
TYPER = f"""
import typer
app = typer.Typer(rich_markup_mode="markdown")
def one({OPTIONS}): ...
app.command()(one)
app(args=["--help"])
"""
LIBRARIES = "import numpy, scipy.stats"
HELP, COMPARE, NAMES = 2.5, 0.2, 1.0
"""Most CPU time: of a help text in those of a typer program of one command with twenty options; of comparing two
rankings of a thousand layers in those of importing scipy for it; of naming 561 layers, and of preparing a pass, in
those of building their model without weights."""
REPETITIONS = 5
KEYLAYERS = ("-m", "keylayers")

Times = dict[str, list[float]]


def in_a_process(*words: str) -> float:
    """CPU seconds of a Python process with these words."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def of_help() -> Times:
    """A typer program, then commands of ours that read no file."""
    ways = {
        "typer: help of one command": ("-c", TYPER),
        "`keylayers --help`": (*KEYLAYERS, "--help"),
        "`keylayers tune --help`": (*KEYLAYERS, "tune", "--help"),
        "`keylayers criteria`": (*KEYLAYERS, "criteria"),
    }
    times: Times = {name: [] for name in ways}
    for round_ in range(REPETITIONS + 1):
        for name, words in ways.items():
            seconds = in_a_process(*words)
            if round_:
                times[name].append(seconds)
    return times


def of_comparing() -> Times:
    """Importing scipy, then the agreement of two rankings of 143 blocks with seven layers each."""
    kinds = ("q", "k", "v", "o", "gate", "up", "down")
    layers = tuple(
        Layer(f"layers.{block}.{kind}", block, kind, (f"layers.{block}.{kind}.weight",), 64)
        for block in range(143)
        for kind in kinds
    )
    one, other = (
        LayerScores(layers, np.random.default_rng(seed).normal(size=len(layers)), "random", "linear") for seed in (0, 1)
    )
    ours = cpu_seconds({"agreement of two rankings of 1001 layers": lambda: agreement(one, other)}, REPETITIONS)
    return {"scipy.stats imported": [in_a_process("-c", LIBRARIES) for _ in range(REPETITIONS)], **ours}


def of_naming() -> Times:
    """Building Llama-3-70B's shapes; listing its layers; preparing a pass of which 70 blocks are kept."""
    import transformers as hf

    config = hf.LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
    )

    def built() -> hf.LlamaForCausalLM:
        with torch.device("meta"):
            return hf.LlamaForCausalLM(config)

    model, kept = built(), BlockOutputs()
    kept.update(dict.fromkeys(range(80)))

    def prepared() -> None:
        with resumed(model, kept, 70):
            pass

    ways: dict[str, Callable[[], object]] = {
        "building Llama-70B without weights": built,
        "naming its 561 layers": lambda: named_layers(model),
        "preparing a pass that resumes at block 70": prepared,
    }
    return cpu_seconds(ways, REPETITIONS)


def rows(times: Times, limit: float) -> tuple[list[str], bool]:
    """Lines of the table, the first the one that the others are compared with, and whether all keep the limit."""
    (floor, below), *others = times.items()
    lines, fine = [f"| {floor} | {statistics.median(below):.2f} |  |  |"], True
    for name, above in others:
        ratios = cpu_ratios(above, below)
        ratio = statistics.median(ratios)
        fine &= ratio <= limit
        lines.append(
            f"| {name} | {statistics.median(above):.2f} | {ratio:.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f}) "
            f"| <= {limit:g} |"
        )
    return lines, fine


def table() -> tuple[list[str], bool]:
    """Markdown lines, and whether every limit holds."""
    found = [rows(of_help(), HELP), rows(of_comparing(), COMPARE), rows(of_naming(), NAMES)]
    head = ["| what | CPU seconds | of the line without a ratio above it (min, max) | allowed |", "|---|---|---|---|"]
    return [*head, *(line for lines, _ in found for line in lines)], all(fine for _, fine in found)


if __name__ == "__main__":
    lines, holds = table()
    print("\n".join(lines))
    sys.exit(not holds)
