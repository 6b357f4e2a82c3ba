"""One training run through transformers.Trainer: resumable, stopped by a loss that is not finite, measured."""

import math
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from keylayers.data.batches import collate
from keylayers.data.tokenise import Examples
from keylayers.errors import BadInput, Diverged

Report = Callable[[int, int, float], None]
"""(steps done, steps in all, loss)."""


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained; defaults suit LoRA on small data."""

    steps: int = 200
    batch_size: int = 16
    """Sequences per step."""
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    """Of the learning rate, as transformers names it: cosine, linear, constant, ..."""
    warmup: float = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    accumulate: int = 1
    """Forward passes whose gradients make one step."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, and the backward pass then reaches the embeddings."""
    seed: int = 0
    save_every: int = 50
    """Steps between saved states, from which an interrupted run resumes bit for bit."""


@dataclass(frozen=True)
class TrainLog:
    """What a training run cost and how its loss went."""

    losses: tuple[float, ...]
    """Training loss of each step, nats per token."""
    seconds: float
    peak_bytes: int
    """Most memory held: of the accelerator, or of the whole process on a CPU."""


def train(
    model: nn.Module,
    examples: Examples,
    settings: TrainSettings,
    *,
    folder: Path | None = None,
    report: Report | None = None,
) -> TrainLog:
    """Trains whatever parameters of the model ask for gradients, in place; resumes from `folder` where it holds a state.

    Raises:
        Diverged: at the first loss that is not finite; names the step.
        BadInput: if no parameter asks for gradients.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInput("no parameter is trainable: the selection matched nothing in this model.")
    with TemporaryDirectory() as scratch:
        place = folder or Path(scratch)
        trainer = _trainer(model, examples, settings, place, report, keep=folder is not None)
        states = sorted(place.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        whole = [path for path in states if (path / "trainer_state.json").is_file()]  # written last
        reset_peak()
        start = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
        seconds = time.perf_counter() - start
    losses = tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    model.eval()
    return TrainLog(losses, seconds, peak_bytes())


def hold_statistics(model: nn.Module) -> None:
    """Puts frozen batch-norm modules in eval mode, so that their running statistics, which no flag freezes, stay."""
    for module in model.modules():
        tracks = getattr(module, "track_running_stats", False)
        if tracks and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


def reset_peak() -> None:
    """Starts a new measurement of the peak; without effect where the system offers none."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: sets the resident peak to what is resident now


def peak_bytes() -> int:
    """Most memory held since `reset_peak`: of the accelerator, or resident memory of the whole process on a CPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _trainer(
    model: nn.Module, examples: Examples, settings: TrainSettings, place: Path, report: Report | None, keep: bool
) -> Any:
    from datasets import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    class Reporter(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **other: Any) -> None:
            if report and logs and "loss" in logs:
                report(state.global_step, state.max_steps, float(logs["loss"]))

    class Watched(Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict, *args: Any, **options: Any) -> Any:
            hold_statistics(model)
            value = super().compute_loss(model, inputs, *args, **options)
            loss = value[0] if isinstance(value, tuple) else value
            if not math.isfinite(float(loss.detach())):
                raise Diverged(
                    f"the training loss is {float(loss.detach())} at step {self.state.global_step + 1} of "
                    f"{settings.steps}; lower --learning-rate (it is {settings.learning_rate:g}) or check the data."
                )
            return value

    arguments = TrainingArguments(
        output_dir=str(place),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=round(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        activation_checkpointing=settings.checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if keep else "no",
        save_steps=settings.save_every,
        save_total_limit=2,
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        label_names=["labels"],
    )
    trainer = Watched(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(examples.rows()),
        data_collator=lambda rows: _collate(rows, examples.pad_id),
        callbacks=[Reporter()],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _collate(rows: list[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    return collate(
        Examples(
            tuple(tuple(row["input_ids"]) for row in rows),
            tuple(tuple(row["labels"]) for row in rows),
            ("",) * len(rows),
            pad_id,
            None,  # type: ignore[arg-type]
        )
    )
