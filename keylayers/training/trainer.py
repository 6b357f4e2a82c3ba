"""One training run through transformers.Trainer: resumable, stopped by a loss that is not finite, measured."""

import math
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from keylayers.data.batches import collate
from keylayers.data.tokenisation import Examples
from keylayers.errors import BadInput, Diverged
from keylayers.files.atomic import scratch_folder, writing
from keylayers.layers.structure import inner_module, unwrap
from keylayers.measures.liveness import require_alive
from keylayers.measures.objective import logits_of, model_device, on_device, refuse_seen_answers
from keylayers.settings import Count, NotNegative, Positive, Seed, Settings, Share
from keylayers.training.memory import peak_bytes, reset_peak
from keylayers.training.sampling import LikeLengths, padding
from keylayers.training.states import load_tensors, newest_whole, read_history, save_tensors, seal_state

LOOKED_AT = 4
"""Records on which a trained model is asked whether it still tells them apart."""

Report = Callable[[int, int, float], None]
"""(steps done, steps in all, loss)."""

Schedule = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]


@dataclass(frozen=True)
class TrainSettings(Settings):
    """How a model is trained; defaults suit LoRA on small data."""

    steps: Count = 200
    batch_size: Count = 16
    """Sequences per step."""
    learning_rate: Positive = 1e-3
    schedule: Schedule = "cosine"
    """Of the learning rate, as transformers names it."""
    warmup: Share = 0.05
    """Share of the steps over which the learning rate rises."""
    weight_decay: NotNegative = 0.0
    max_grad_norm: NotNegative = 1.0
    accumulate: Count = 1
    """Forward passes whose gradients make one step."""
    checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    seed: Seed = 0
    save_every: Count = 50
    """Steps between saved states, from which an interrupted run resumes bit for bit."""
    stop_after: Count | None = None
    """Stop after so many of the steps, in the middle of the schedule; None: go to its end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop_after is not None and self.stop_after > self.steps:
            raise BadInput(f"stop after step {self.stop_after}: expected 1 to {self.steps}, the steps in all.")

    @property
    def last_step(self) -> int:
        """The step after which training ends."""
        return self.steps if self.stop_after is None else self.stop_after


@dataclass(frozen=True)
class TrainLog:
    """What a training run cost and how its loss went."""

    losses: tuple[float, ...]
    """Training loss of each step, nats per token; of all steps, also where the run was resumed."""
    seconds: float
    """Of this process alone."""
    peak_bytes: int
    """Most memory held: of the accelerator, or of the whole process on a CPU."""
    padding: float = 1.0
    """Tokens computed for each real one."""


def train(
    model: nn.Module,
    examples: Examples,
    settings: TrainSettings,
    *,
    folder: Path | None = None,
    report: Report | None = None,
    before_step: Callable[[int], None] | None = None,
) -> TrainLog:
    """Trains whatever parameters of the model ask for gradients, in place; resumes where `folder` holds a state.

    Examples of like length share a step, which saves padding: each once per epoch, in groups and an order drawn anew by
    the seed; a step's loss is the mean over its own tokens. The optimiser is made once, from what asks for gradients
    now: what asks later does not train. `before_step` is called before every step with the number of steps done; what
    it freezes stands still until it is thawed. Batch norms whose parameters are frozen keep their running statistics.
    The model comes back in eval mode.

    Raises:
        Diverged: at the first loss that is not finite, or if the last step left such a weight; names the step. If the
            trained model predicts the same whatever it is given.
        BadInput: if no parameter asks for gradients, or the network would see the answers that it is to learn.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BadInput("no parameter is trainable: the selection matched nothing in this model.")
    network = inner_module(unwrap(model))
    if hasattr(network, "get_output_embeddings"):
        refuse_seen_answers(network, collate(examples.take([0])))
    with scratch_folder() if folder is None else nullcontext(folder) as place:
        with writing(place):  # it makes the folder
            trainer = _trainer(model, examples, settings, place, report, before_step, keep=folder is not None)
        state = newest_whole(place)
        reset_peak()
        start = time.perf_counter()
        try:
            if state is not None and read_history(state)[0] >= settings.last_step:
                load_tensors(model, state)  # a Trainer resumed at its last step takes one more before it looks
                history = read_history(state)[1]
            else:
                trainer.train(resume_from_checkpoint=None if state is None else str(state))
                history = trainer.state.log_history
        finally:
            model.eval()
            _stop_checkpointing(model)
        seconds = time.perf_counter() - start
    _require_finite_weights(model, settings)
    _require_alive(model, examples, settings)
    losses = tuple(entry["loss"] for entry in history if "loss" in entry)
    lengths, shape = _lengths(examples), (settings.batch_size, settings.accumulate, settings.last_step)
    return TrainLog(losses, seconds, peak_bytes(), round(padding(lengths, *shape, settings.seed), 4))


def hold_statistics(model: nn.Module) -> None:
    """Puts frozen batch-norm modules in eval mode, so that their running statistics, which no flag freezes, stay.

    One without parameters is frozen where anything else is. For a loop of one's own: call it after every
    `model.train()`.
    """
    tracking = [module for module in model.modules() if getattr(module, "track_running_stats", False)]
    whole = bool(tracking) and all(parameter.requires_grad for parameter in model.parameters())
    for module in tracking:
        own = list(module.parameters())
        if not (any(parameter.requires_grad for parameter in own) if own else whole):
            module.eval()


def _trainer(
    model: nn.Module,
    examples: Examples,
    settings: TrainSettings,
    place: Path,
    report: Report | None,
    before_step: Callable[[int], None] | None,
    keep: bool,
) -> Any:
    from datasets import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trained = model

    class Watcher(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **other: Any) -> None:
            if settings.checkpointing:
                _keep_inputs_frozen(model)

        def on_step_begin(self, args: Any, state: Any, control: Any, **other: Any) -> None:
            if before_step is not None:
                before_step(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **other: Any) -> None:
            if report and logs and "loss" in logs:
                report(state.global_step, state.max_steps, float(logs["loss"]))

        def on_step_end(self, args: Any, state: Any, control: Any, **other: Any) -> None:
            if state.global_step >= settings.last_step:
                control.should_training_stop = True
                control.should_save = keep

        def on_save(self, args: Any, state: Any, control: Any, **other: Any) -> None:
            if state.is_world_process_zero:
                seal_state(place / f"checkpoint-{state.global_step}")

    class Watched(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> LikeLengths:
            return LikeLengths(_lengths(examples), settings.batch_size * settings.accumulate, settings.seed)

        def compute_loss(self, model: nn.Module, inputs: dict, *args: Any, **options: Any) -> Any:
            hold_statistics(model)
            value = super().compute_loss(model, inputs, *args, **options)
            loss = float((value[0] if isinstance(value, tuple) else value).detach())
            if not math.isfinite(loss):
                raise Diverged(
                    f"the training loss is {loss} at step {self.state.global_step + 1} of {settings.steps}; "
                    f"lower the learning rate (`learning_rate`, now {settings.learning_rate:g}) or check the data."
                )
            return value

        def _save_checkpoint(self, *args: Any, **options: Any) -> None:
            with writing(place):
                super()._save_checkpoint(*args, **options)

        def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
            if state_dict is not None:  # sharded over processes: theirs to gather
                super()._save(output_dir, state_dict)
            else:
                save_tensors(trained, Path(output_dir or place))

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                load_tensors(trained, Path(resume_from_checkpoint))

    names = {item.name for item in fields(TrainingArguments)}
    recompute = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    recomputing: dict[str, Any] = {recompute: settings.checkpointing, f"{recompute}_kwargs": {"use_reentrant": False}}
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
        **recomputing,
    )
    trainer = Watched(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(examples.rows()),
        data_collator=lambda rows: _collate(rows, examples),
        callbacks=[Watcher()],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    return trainer


def _lengths(examples: Examples) -> list[int]:
    return [len(ids) for ids in examples.input_ids]


def _collate(rows: list[dict[str, list[int]]], examples: Examples) -> dict[str, Tensor]:
    ids, labels = (tuple(tuple(row[key]) for row in rows) for key in ("input_ids", "labels"))
    return collate(Examples(ids, labels, ("",) * len(rows), examples.pad_id, examples.report))


def _keep_inputs_frozen(model: nn.Module) -> None:
    """Takes back what transformers adds to checkpointing: that the embeddings' output asks for gradients, which drags
    the backward pass through every block. Only reentrant checkpointing needs it, and ours is not."""
    with suppress(AttributeError):  # no such hook was set
        unwrap(model).disable_input_require_grads()  # type: ignore[operator]


def _stop_checkpointing(model: nn.Module) -> None:
    network = unwrap(model)
    if any(getattr(module, "gradient_checkpointing", False) for module in network.modules()):
        stop = getattr(network, "activation_checkpointing_disable", None) or network.gradient_checkpointing_disable
        stop()  # type: ignore[operator]


def _require_alive(model: nn.Module, examples: Examples, settings: TrainSettings) -> None:
    """A model whose outputs have become constant has a loss that looks like any other."""
    with torch.no_grad():
        batch = collate(examples.take(range(min(LOOKED_AT, len(examples)))))
        logits = logits_of(model(**on_device(batch, model_device(model))))  # labels as in training: some take no less
    require_alive(
        logits, f"lower the learning rate (`learning_rate`, now {settings.learning_rate:g}) or check the data."
    )


def _require_finite_weights(model: nn.Module, settings: TrainSettings) -> None:
    """The last step's weights are in no loss that was looked at."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
            raise Diverged(
                f"{name} is not finite after the last step, {settings.steps}; lower the learning rate "
                f"(`learning_rate`, now {settings.learning_rate:g}) or check the data."
            )
