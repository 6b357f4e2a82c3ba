"""Four criteria of hidden states from one pass, beside the bare capture pass that they share."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.interleaved import cpu_ratios, cpu_seconds
from keylayers import criteria
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.support.observers import ObservingCriterion, observe_together
from keylayers.layers.capturing import capture
from keylayers.layers.naming import named_layers
from keylayers.measures.objective import language_loss

WIDTH, BLOCKS, VOCABULARY, BATCH, LENGTH, BATCHES = 512, 6, 2048, 8, 128, 4
NAMES = ("cka_shift", "block_influence", "angular_distance", "component_shift")
BARE, TOGETHER, APART = "bare capture pass", "four criteria together", "four criteria, one after another"
LIMIT = 1.3
"""Most that the four may cost together, in bare passes."""


def make_model() -> nn.Module:
    """A random Llama, narrow and short: what the criteria add weighs more here than in a real one."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=1408,
        num_hidden_layers=BLOCKS,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
    )
    return LlamaForCausalLM(config).eval()


def make_data() -> list[dict[str, Tensor]]:
    """Records whose second half is supervised; some end in padding."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for _ in range(BATCHES):
        ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=generator)
        mask = torch.ones_like(ids)
        mask[::4, -LENGTH // 8 :] = 0
        labels = torch.where((torch.arange(LENGTH) < LENGTH // 2) | (mask == 0), -100, ids)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return made


def ways() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    model, data = make_model(), make_data()
    blocks = named_layers(model, "block")
    evidence = Evidence(model=model, data=data, granularity="block")
    asked: dict[str, tuple[ObservingCriterion, object]] = {}
    for name in NAMES:
        criterion = criteria.get(name)
        assert isinstance(criterion, ObservingCriterion)
        asked[name] = (criterion, criterion.settings())

    def bare() -> None:
        with torch.no_grad():
            for batch in data:
                with capture(model, blocks, stop=True):
                    language_loss(model, batch)

    return {
        BARE: bare,
        TOGETHER: lambda: observe_together(evidence, blocks, asked),
        APART: lambda: [criterion(evidence, blocks) for criterion, _ in asked.values()],
    }


def table(repetitions: int = 3) -> tuple[list[str], bool]:
    """Markdown lines, and whether the limit holds."""
    torch.set_num_threads(1)
    made = ways()
    times = cpu_seconds(made, repetitions)
    lines = [
        f"Llama shape: width {WIDTH}, {BLOCKS} blocks, {BATCHES} batches of {BATCH} x {LENGTH} tokens, fp32; CPU "
        f"seconds of one thread; {', '.join(NAMES)}, intervals included.",
        "",
        "| pass over the data | seconds | of the bare pass (min, max) | allowed |",
        "|---|---|---|---|",
    ]
    middles = {}
    for name in made:
        ratios = cpu_ratios(times[name], times[BARE])
        middles[name] = statistics.median(ratios)
        allowed = f"<= {LIMIT}" if name == TOGETHER else ""
        seconds, spread = statistics.median(times[name]), f"{ratios[0]:.2f}, {ratios[-1]:.2f}"
        lines.append(f"| {name} | {seconds:.2f} | {middles[name]:.2f} ({spread}) | {allowed} |")
    return lines, middles[TOGETHER] <= LIMIT


if __name__ == "__main__":
    print("\n".join(table()[0]))
