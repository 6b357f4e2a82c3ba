"""Selective tuning: LoRA, QLoRA or all parameters of exactly the selected layers, with proof that nothing else changed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from keylayers.actions.proof import check_only_changed, fingerprints
from keylayers.actions.tuning import Forecast, forecast, tuning_only
from keylayers.data.tokenise import Examples
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.deltas import unloaded
from keylayers.scores.selection import Selection
from keylayers.training.adapters import LoraSettings, attach_lora
from keylayers.training.train import Report, TrainLog, TrainSettings, train

METHODS = ("lora", "qlora", "full")


@dataclass(frozen=True)
class TuneSettings:
    """How the selected layers are tuned."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """`qlora` is LoRA on a model loaded in 4 bits (nf4); the model must have been loaded so."""
    training: TrainSettings = field(default_factory=TrainSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass(frozen=True)
class Tuned:
    """The tuned model and what was done to get it."""

    model: nn.Module
    """The model that was given: with adapters on (lora, qlora), or with new weights (full)."""
    log: TrainLog
    forecast: Forecast
    untouched: int
    """Tensors proved bit-identical to before."""


def tune(
    model: nn.Module,
    selection: Selection,
    examples: Examples,
    settings: TuneSettings | None = None,
    *,
    folder: Path | None = None,
    report: Report | None = None,
    announce: Any = None,
) -> Tuned:
    """Trains exactly the selected layers, in place; `announce` gets the forecast before the first step.

    Frozen modules stay in eval mode, so that no running statistic outside the selection moves. With a folder, training
    resumes there after an interruption, and adapters are stored under `adapter/`.

    Raises:
        BadSelection: if the selection does not fit the model or the method.
        KeylayersError: if anything outside the selection changed.
    """
    settings = settings or TuneSettings()
    if settings.method not in METHODS:
        raise UnknownName("method", settings.method, METHODS)
    quantised = any(hasattr(parameter, "quant_state") for parameter in model.parameters())
    if settings.method == "qlora" and not quantised:
        raise BadInput("qlora needs the model in 4 bits: load_model(..., four_bit=True).")
    if settings.method == "full" and quantised:
        raise BadInput("a 4-bit model cannot be trained in full; use --method qlora, or load it without quantisation.")
    before = fingerprints(model)
    if settings.method == "full":
        with tuning_only(model, selection):
            plan = forecast(model, selection, checkpointing=settings.training.checkpointing)
            if announce:
                announce(plan)
            log = train(model, examples, settings.training, folder=folder, report=report)
        allowed = {name for layer in selection.chosen for name in layer.parameters}
        return Tuned(model, log, plan, check_only_changed(before, fingerprints(model), allowed))
    if quantised:
        model = _ready_for_qlora(model, settings.training.checkpointing)
    adapted = attach_lora(model, selection.chosen, settings.lora, settings.training.seed)
    try:
        count = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
        plan = forecast(model, selection, trainable=count, checkpointing=settings.training.checkpointing)
        if announce:
            announce(plan)
        log = train(adapted, examples, settings.training, folder=folder, report=report)
        untouched = check_only_changed(before, fingerprints(adapted), allowed=())
    except BaseException:
        unloaded(adapted)
        raise
    if folder is not None:
        adapted.save_pretrained(folder / "adapter")  # type: ignore[operator]
    return Tuned(adapted, log, plan, untouched)


def _ready_for_qlora(model: nn.Module, checkpointing: bool) -> nn.Module:
    """Freezes the base; with checkpointing, inputs must ask for gradients, so the backward pass reaches the embeddings."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if checkpointing:
        model.enable_input_require_grads()  # type: ignore[operator]
    return model
