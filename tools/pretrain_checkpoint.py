"""The state of a training run in one file, and the finished model with its record."""

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM

from keylayers.files.atomic import replacing
from keylayers.world import tokenizer
from keylayers.world.rows import digest
from keylayers.world.settings import LONG_ROWS, LONG_SHARES, NOTES, SHORT_NOTES, STAGES, Settings
from tools import pretrain_evaluate

STATE = "state.safetensors"


def save_state(folder: Path, step: int, model, optimisers: list[torch.optim.Optimizer], log: dict) -> None:
    """One file with weights, optimiser state and log; replaced in one move."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for i, optimiser in enumerate(optimisers):
        for j, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{j}.{key}": torch.as_tensor(value) for key, value in state.items()}
    notes = {"step": str(step), "log": json.dumps(log)}
    with replacing(folder / STATE) as beside:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, notes)


def load_state(folder: Path, model, optimisers: list[torch.optim.Optimizer]) -> tuple[int, dict]:
    """Puts weights and optimiser state back; the step to go on from, and the log so far."""
    with safe_open(folder / STATE, "pt") as file:
        notes = file.metadata()
    tensors = load_file(folder / STATE)
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    for i, optimiser in enumerate(optimisers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith(f"optimiser.{i}."):
                _, _, j, key = name.split(".", 3)
                state.setdefault(int(j), {})[key] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return int(notes["step"]), json.loads(notes["log"])


def export(run: Path, to: Path, settings: Settings, model, step: int, log: dict) -> dict:
    """Writes the model in bfloat16 with its tokenizer, reloads what was written, and records its held-out figures."""
    bpe = AutoTokenizer.from_pretrained(run)
    to.mkdir(parents=True, exist_ok=True)
    model.set_attn_implementation("sdpa")
    model.to(torch.bfloat16).save_pretrained(to)
    tokenizer.save(bpe, to)
    stored = LlamaForCausalLM.from_pretrained(to, dtype=torch.float32).eval()
    record = {
        "held_out": pretrain_evaluate.full(stored, bpe),
        "data": {
            "sha256": digest(settings),
            "stages": STAGES,
            "long_rows": LONG_ROWS,
            "long_shares": LONG_SHARES,
            "tokens_read": log["tokens"],
        },
        "notes": NOTES if settings == Settings() else SHORT_NOTES,
        "settings": asdict(settings),
        "parameters": model.num_parameters(),
        "steps": step,
        "seconds": round(log["seconds"]),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "losses": log["losses"],
        "figures": log["figures"],
    }
    with replacing(to / "training.json") as beside:
        beside.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _processor() -> str:
    """What Linux calls the processor, else what Python does."""
    names = Path("/proc/cpuinfo")
    if names.exists():
        for line in names.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
