"""Trains a bundled model: `python -m tools.pretrain --out DIR --model NAME`; stopped, it resumes exactly."""

import argparse
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from keylayers.errors import Diverged
from keylayers.world import tokenizer
from keylayers.world.rows import mixtures, pack_rows
from keylayers.world.settings import MODELS, TOKENIZER_WEIGHTS, Settings
from tools import pretrain_evaluate
from tools.pretrain_checkpoint import STATE, export, load_state, save_state

SAVE_EVERY = 120  # seconds
REPORT_EVERY, JUDGE_EVERY = 25, 200  # steps
MICRO_BATCH = 2048  # tokens a forward pass: what fits a core's cache is fastest


def build(settings: Settings, bpe) -> LlamaForCausalLM:
    """The untrained model, fixed by the seed."""
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(bpe),
            hidden_size=settings.d_model,
            intermediate_size=settings.d_hidden,
            num_hidden_layers=settings.blocks,
            num_attention_heads=settings.heads,
            num_key_value_heads=settings.kv_heads,
            max_position_embeddings=settings.context,
            tie_word_embeddings=False,
            bos_token_id=bpe.bos_token_id,
            eos_token_id=bpe.eos_token_id,
            pad_token_id=bpe.pad_token_id,
        )
    )


def rate(settings: Settings, step: int) -> float:
    """The factor on both learning rates: warm-up, stable, linear decay; in [0, 1]."""
    left = (settings.steps - step) / settings.decay
    return min(1.0, (step + 1) / settings.warmup, left)


def optimisers(settings: Settings, model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for all else."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or ".layers." not in n]
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_rate, momentum=0.95, weight_decay=settings.weight_decay),
        torch.optim.AdamW(others, lr=settings.vector_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def gradients(model: LlamaForCausalLM, ids: torch.Tensor, learnt: torch.Tensor, parts: int) -> float:
    """Leaves the gradient of the loss over all processes' tokens in the model; the mean loss in nats.

    The gradient is of the sum over the learnt tokens divided by the number of places, so that a step with few learnt
    tokens weighs little.

    Raises:
        Diverged: if the loss or a gradient is not finite.
    """
    targets = ids[:, 1:].masked_fill(~learnt[:, 1:], -100)
    total = torch.tensor([0.0, learnt[:, 1:].sum()])
    # eager attention: at 128 tokens a CPU's flash kernel needs twice as long, at 2,048 a quarter
    model.set_attn_implementation("eager" if ids.shape[1] <= 512 else "sdpa")
    size = max(1, MICRO_BATCH // ids.shape[1])
    for some, wanted in zip(ids.split(size), targets.split(size), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=some, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), reduction="sum")
        (loss / (ids.numel() * parts)).backward()
        total[0] += loss.detach()
    weights = list(model.parameters())
    flat = torch.cat([total, *(weight.grad.flatten() for weight in weights if weight.grad is not None)])
    if parts > 1:
        distributed.all_reduce(flat)
    if not torch.isfinite(flat).all():
        raise Diverged("the loss or a gradient is not a finite number")
    total, flat = flat[:2], flat[2:]
    flat *= min(1.0, 1.0 / (flat.norm().item() + 1e-6))
    for weight, gradient in zip(weights, flat.split([weight.numel() for weight in weights]), strict=True):
        weight.grad = gradient.view_as(weight)
    return (total[0] / total[1]).item()


def train(part: int, parts: int, out: Path, settings: Settings, stop_at: int | None = None) -> None:
    """Trains in `parts` processes of one thread each, which add up their gradients after each step."""
    torch.set_num_threads(1)
    if parts > 1:
        meeting = f"file://{out.resolve()}/meeting"
        distributed.init_process_group("gloo", init_method=meeting, rank=part, world_size=parts)
    bpe = AutoTokenizer.from_pretrained(out)
    model = build(settings, bpe)
    both = optimisers(settings, model)
    first = 0
    log: dict[str, Any] = {"seconds": 0.0, "tokens": 0, "losses": [], "figures": []}
    if (out / STATE).exists():
        first, log = load_state(out, model, both)
    last = min(settings.steps, stop_at or settings.steps)
    mixture = mixtures(settings, bpe) if first < last else {}
    began, earlier, saved = time.time(), log["seconds"], time.time()
    recent: list[float] = []
    for step in range(first, last):
        ids, learnt = pack_rows(settings, bpe, mixture, step, part, parts)
        try:
            loss = gradients(model, ids, learnt, parts)
        except Diverged as error:
            raise Diverged(f"step {step}: {error}") from None
        for optimiser, top in zip(both, (settings.matrix_rate, settings.vector_rate), strict=True):
            optimiser.param_groups[0]["lr"] = top * rate(settings, step)
            optimiser.step()
        model.zero_grad()
        recent.append(loss)
        log["tokens"] += settings.tokens
        log["seconds"] = earlier + time.time() - began
        if part > 0:
            continue
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == settings.steps:
            log["losses"].append([step + 1, round(sum(recent) / len(recent), 4)])
            _report(step + 1, settings, log, (time.time() - began) / (step + 1 - first))
            recent = []
        if (step + 1) % JUDGE_EVERY == 0:
            log["figures"].append({"step": step + 1, **pretrain_evaluate.quick(model, bpe)})
            print(json.dumps(log["figures"][-1]), flush=True)
        if time.time() - saved > SAVE_EVERY or step + 1 == last:
            save_state(out, step + 1, model, both, log)
            saved = time.time()


def _report(step: int, settings: Settings, log: dict, pace: float) -> None:
    """One line: loss in nats a token, speed, time left at `pace` seconds a step."""
    print(
        f"step {step}/{settings.steps} loss {log['losses'][-1][1]:.4f} {log['tokens'] / log['seconds']:.0f} tokens/s "
        f"{log['seconds']:.0f} s, {pace * (settings.steps - step) / 60:.0f} min left",
        flush=True,
    )


def main() -> None:
    """Reads the command line; trains, or goes on training, then exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: its state and the tokenizer")
    parser.add_argument("--to", type=Path, help="folder of the finished model; default: OUT/model")
    parser.add_argument("--model", choices=MODELS, default="llama", help="which of the bundled models (default llama)")
    parser.add_argument("--processes", type=int, default=2, help="processes of one thread each (default 2)")
    parser.add_argument("--stop-at", type=int, help="stop after this step; a later call goes on")
    options = parser.parse_args()
    settings = MODELS[options.model]
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "tokenizer.json").exists():
        tokenizer.save(tokenizer.train(TOKENIZER_WEIGHTS), options.out)
    (options.out / "meeting").unlink(missing_ok=True)
    run = partial(train, parts=options.processes, out=options.out, settings=settings, stop_at=options.stop_at)
    if options.processes > 1:
        torch.multiprocessing.spawn(run, nprocs=options.processes)
    else:
        run(0)
    model = build(settings, AutoTokenizer.from_pretrained(options.out))
    step, log = load_state(options.out, model, optimisers(settings, model))
    torch.set_num_threads(os.cpu_count() or 1)
    record = export(options.out, options.to or options.out / "model", settings, model, step, log)
    print(json.dumps(record["held_out"], indent=1))


if __name__ == "__main__":
    main()
