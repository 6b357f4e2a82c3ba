"""An ablation sweep over blocks against its limit, and against the plain way: one whole pass per block.

`python -m benchmarks.ablation` prints the table, in less than two minutes on one core.
"""

import copy
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from keylayers.criteria.ablation import score_ablation
from keylayers.criteria.protocol import Evidence
from keylayers.layers.intervene import skipped
from keylayers.layers.naming import named_layers
from keylayers.measures.objective import language_loss

WIDTH, BLOCKS, VOCABULARY, BATCH, LENGTH = 512, 8, 4096, 2, 128
ALLOWED = 1.1
"""Most that the sweep may cost, in its own limit."""
FULL, HEAD, OURS, SUBLAYERS, PLAIN = (
    "bare forward pass",
    "the same without blocks",
    "ablation of each block",
    "ablation of each sublayer",
    "plain: a whole pass per block, the block skipped by a hook",
)


def make_model() -> nn.Module:
    """A random Llama; what is not a block (embedding, head) is large, as in small real models."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
    )
    return LlamaForCausalLM(config).eval()


def steps() -> dict[str, Callable[[], object]]:
    """What is timed, ready to be repeated."""
    model = make_model()
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=generator)
    batch: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    bare = copy.deepcopy(model)
    bare.model.layers = nn.ModuleList()  # type: ignore[union-attr]
    bare.config.num_hidden_layers = 0  # type: ignore[union-attr]
    blocks, sublayers = (named_layers(model, granularity) for granularity in ("block", "sublayer"))

    def loss(one: nn.Module) -> float:
        with torch.no_grad():
            return float(language_loss(one, batch)[0])

    def plain() -> list[float]:
        whole, without = loss(model), []
        for block in blocks:
            with skipped(model, [block]):
                without.append(loss(model) - whole)
        return without

    evidence = Evidence(model=model, data=[batch])
    return {
        FULL: lambda: loss(model),
        HEAD: lambda: loss(bare),
        OURS: lambda: score_ablation(evidence, blocks).values,
        SUBLAYERS: lambda: score_ablation(evidence, sublayers).values,
        PLAIN: plain,
    }


def limits(full: float, head: float) -> dict[str, float]:
    """Seconds that the sweeps cannot go below, for L blocks of b seconds and a head (embedding, loss) of h."""
    block = (full - head) / BLOCKS
    above = BLOCKS * (BLOCKS - 1) / 2  # blocks above each one
    return {
        OURS: (BLOCKS + above) * block + (BLOCKS + 1) * head,
        SUBLAYERS: (BLOCKS + 2 * above + BLOCKS) * block + (2 * BLOCKS + 1) * head,
    }


def measure(repetitions: int = 7) -> dict[str, list[float]]:
    """Seconds of every step, interleaved."""
    todo = steps()
    times: dict[str, list[float]] = {name: [] for name in todo}
    for round_ in range(repetitions + 1):
        for name, step in todo.items():
            start = time.perf_counter()
            step()
            if round_:  # the first is a warm-up
                times[name].append(time.perf_counter() - start)
    return times


def table() -> tuple[list[str], bool]:
    """Markdown lines, and whether the limit holds."""
    times = measure()
    lowest = [limits(full, head) for full, head in zip(times[FULL], times[HEAD], strict=True)]
    lines = [
        f"Llama shape: width {WIDTH}, L = {BLOCKS} blocks, vocabulary {VOCABULARY}, {BATCH} x {LENGTH} tokens, fp32, "
        "teacher-forced loss.",
        "Limit of the block sweep: L blocks and a head for the whole model, then for each block those above it and a "
        f"head: L (L + 1) / 2 b + (L + 1) h = {BLOCKS * (BLOCKS + 1) // 2} b + {BLOCKS + 1} h; the plain way needs "
        f"L (L + 1) b + (L + 1) h = {BLOCKS * (BLOCKS + 1)} b + {BLOCKS + 1} h. Of the sublayer sweep: blocks twice by "
        f"half, one of its sublayers being silent: L (L + 1) b + (2 L + 1) h = {BLOCKS * (BLOCKS + 1)} b + "
        f"{2 * BLOCKS + 1} h. b and h are from the bare passes beside each repetition.",
        "",
        "| step | seconds | of its limit (min, max) | allowed |",
        "|---|---|---|---|",
    ]
    fine = True
    for name, found in times.items():
        if name not in lowest[0]:
            lines.append(f"| {name} | {statistics.median(found):.3f} |  |  |")
            continue
        ratios = sorted(mine / limit[name] for mine, limit in zip(found, lowest, strict=True))
        allowed = f"<= {ALLOWED}" if name == OURS else ""
        fine &= name != OURS or statistics.median(ratios) <= ALLOWED
        lines.append(
            f"| {name} | {statistics.median(found):.3f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f}, "
            f"{ratios[-1]:.2f}) | {allowed} |"
        )
    gain = statistics.median(plain / mine for plain, mine in zip(times[PLAIN], times[OURS], strict=True))
    lines += ["", f"The plain way takes {gain:.2f} times as long as the block sweep."]
    return lines, fine


if __name__ == "__main__":
    body, holds = table()
    print("\n".join(body))
    sys.exit(0 if holds else 1)
