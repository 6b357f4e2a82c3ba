"""A mask-learning step against its limit: one forward and one activation-only backward pass of the bare model."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from keylayers.layers.deltas import Deltas, DenseDelta, LowRankDelta
from keylayers.layers.gating import frozen, gated
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import parameters_of
from keylayers.measures.objective import language_loss
from keylayers.training.adapters import LoraSettings, attach_lora
from keylayers.training.memory import peak_bytes, reset_peak

VOCABULARY, BATCH, LENGTH, RANK = 2048, 8, 256, 8


@dataclass(frozen=True)
class Shape:
    """Of a random Llama."""

    width: int = 768
    blocks: int = 4
    heads: int = 12
    kv_heads: int = 4


SHAPE = Shape()
LIMITS = {"stage 2, LoRA deltas": 1.2, "stage 2, full deltas": 1.6}
"""Most that a step may cost, in bare steps."""
BARE, STAGE_ONE = "bare forward + activation backward", "stage 1, LoRA on all layers (peft)"
Step = Callable[[], None]
_OPEN = ExitStack()  # what the steps work in, kept open as long as the process runs


def make_model(shape: Shape = SHAPE) -> nn.Module:
    """A random Llama, by default with the shapes of a 0.1-0.3 B model in few blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.width * 8 // 3,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=VOCABULARY,
    )
    return LlamaForCausalLM(config).eval()


def make_step(kind: str, shape: Shape = SHAPE) -> Step:
    """One step of that kind, ready to be repeated: its model, deltas and optimiser made once."""
    model = make_model(shape)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    if kind == BARE:
        _OPEN.enter_context(frozen(model))
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()  # type: ignore[operator]
        inputs = {"inputs_embeds": embedded, "attention_mask": batch["attention_mask"], "labels": ids}

        def bare() -> None:
            embedded.grad = None
            _mean(model, inputs).backward()

        return bare
    layers = named_layers(model)
    if kind == STAGE_ONE:
        adapted = attach_lora(model, layers, LoraSettings(rank=RANK), seed=0).train()
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=1e-4)

        def stage_one() -> None:
            optimiser.zero_grad()
            _mean(adapted, batch).backward()
            optimiser.step()

        return stage_one
    parameters = parameters_of(model)

    def delta(name: str) -> LowRankDelta | DenseDelta:
        d_out, d_in = parameters[name].shape
        if "LoRA" in kind:
            up, down = (0.01 * torch.randn(*shape, generator=generator) for shape in ((d_out, RANK), (RANK, d_in)))
            return LowRankDelta(up, down, 2.0)
        change = 0.001 * torch.randn(d_out, d_in, generator=generator)
        return DenseDelta(lambda: change)

    deltas = Deltas(layers, tuple({f"{layer.name}.weight": delta(f"{layer.name}.weight")} for layer in layers))
    scores = torch.full((len(layers),), 4.0, requires_grad=True)
    adam = torch.optim.Adam([scores], lr=0.01)
    _OPEN.enter_context(frozen(model))
    _OPEN.enter_context(gated(model, deltas, lambda: torch.sigmoid(scores)))

    def stage_two() -> None:
        adam.zero_grad()
        _mean(model, batch).backward()
        adam.step()

    return stage_two


def _mean(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    loss, count = language_loss(model, batch)
    return loss / count


KINDS = (BARE, *LIMITS, STAGE_ONE)


def measure(repetitions: int = 7) -> list[dict[str, object]]:
    """Seconds per step of every kind, interleaved; ratios pair each repetition with the bare step beside it."""
    steps = {kind: make_step(kind) for kind in KINDS}
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for round_ in range(repetitions + 1):
        for kind, step in steps.items():
            start = time.perf_counter()
            step()
            if round_:  # the first is a warm-up
                times[kind].append(time.perf_counter() - start)
    rows = []
    for kind in KINDS:
        ratios = sorted(mine / bare for mine, bare in zip(times[kind], times[BARE], strict=True))
        rows.append(
            {
                "kind": kind,
                "seconds": statistics.median(times[kind]),
                "ratio": statistics.median(ratios),
                "low": ratios[0],
                "high": ratios[-1],
                "limit": LIMITS.get(kind),
                "peak_mib": _peak_of(kind) / 2**20,
            }
        )
    return rows


def _peak_of(kind: str) -> int:
    """Resident memory that a step of this kind adds to the loaded model, measured in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.stage_two", kind], capture_output=True, text=True, check=True
    )
    return int(json.loads(run.stdout.splitlines()[-1])["peak"])


def table() -> tuple[list[str], bool]:
    """Markdown lines, and whether every limit holds."""
    rows = measure()
    lines = [
        f"Llama shape: width {SHAPE.width}, {SHAPE.blocks} blocks, {BATCH} x {LENGTH} tokens, rank {RANK}, fp32.",
        "",
        "| step | seconds | of the bare step (min, max) | allowed | memory a step adds, MiB |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        allowed = f"<= {row['limit']}" if row["limit"] else ""
        lines.append(
            f"| {row['kind']} | {row['seconds']:.3f} | {row['ratio']:.2f} ({row['low']:.2f}, {row['high']:.2f}) "
            f"| {allowed} | {row['peak_mib']:.0f} |"
        )
    by_kind = {row["kind"]: row for row in rows}
    to_stage_one = by_kind["stage 2, LoRA deltas"]["seconds"] / by_kind[STAGE_ONE]["seconds"]  # type: ignore[operator]
    lines += ["", f"Stage 2 over stage 1: {to_stage_one:.2f} (paper, Llama-2-7B class, 5343 / 6671 ms: 0.80)."]
    return lines, all(row["limit"] is None or row["ratio"] <= row["limit"] for row in rows)  # type: ignore[operator]


if __name__ == "__main__":
    step = make_step(sys.argv[1])
    reset_peak()
    before = peak_bytes()
    step()
    step()
    print(json.dumps({"peak": peak_bytes() - before}))
