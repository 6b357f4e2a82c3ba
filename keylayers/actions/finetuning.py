"""Selective tuning: LoRA, QLoRA or all parameters of exactly the selected layers, and proof that no other changed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from keylayers.actions.fingerprinting import check_only_changed, fingerprints
from keylayers.actions.freezing import Forecast, forecast, tensors_that_may_change, tuning_only
from keylayers.data.tokenisation import Examples
from keylayers.errors import BadInput, UnknownName
from keylayers.scores.selection import Selection
from keylayers.settings import Settings
from keylayers.training.adapters import LoraSettings, attach_lora, restored, save_adapter
from keylayers.training.trainer import Report, TrainLog, TrainSettings, train

METHODS = ("lora", "qlora", "full")


@dataclass(frozen=True)
class TuneSettings(Settings):
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
    """Parameters and buffers proved bit-identical to before."""


def tune(
    model: nn.Module,
    selection: Selection,
    examples: Examples,
    settings: TuneSettings | None = None,
    *,
    folder: Path | None = None,
    report: Report | None = None,
    announce: Callable[[Forecast], None] | None = None,
) -> Tuned:
    """Trains exactly the selected layers, in place; `announce` gets the forecast before the first step.

    Frozen batch norms keep their running statistics. With a folder, training resumes there after an interruption, and
    adapters are stored under `adapter/`.

    Raises:
        BadSelection: if the selection does not fit the model or the method.
        BadInput: if the method does not fit how the model was loaded.
        Diverged: if a loss or a weight is not finite.
        KeylayersError: if anything outside the selection changed.
    """
    settings = settings or TuneSettings()
    check_method(settings.method, is_quantised(model))
    way = _tune_weights if settings.method == "full" else _tune_adapters
    return way(model, selection, examples, settings, folder, report, announce or (lambda plan: None))


def is_quantised(model: nn.Module) -> bool:
    """Whether a model's weights are stored in 4 bits (bitsandbytes)."""
    return any(hasattr(parameter, "quant_state") for parameter in model.parameters())


def check_method(method: str, quantised: bool | None = None) -> None:
    """Raises UnknownName for a method that does not exist, BadInput for one that does not go with the model."""
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    if method == "qlora" and quantised is False:
        raise BadInput("qlora needs the model in 4 bits: load_model(..., four_bit=True).")
    if method == "full" and quantised:
        raise BadInput(
            "a 4-bit model cannot be trained in full", "use `method=qlora`", "load the model without quantisation"
        )


def _tune_weights(
    model: nn.Module,
    selection: Selection,
    examples: Examples,
    settings: TuneSettings,
    folder: Path | None,
    report: Report | None,
    announce: Callable[[Forecast], None],
) -> Tuned:
    before = fingerprints(model)
    with tuning_only(model, selection):
        plan = forecast(model, selection)
        announce(plan)
        log = train(model, examples, settings.training, folder=folder, report=report)
    allowed = tensors_that_may_change(model, selection)
    return Tuned(model, log, plan, check_only_changed(before, fingerprints(model), allowed))


def _tune_adapters(
    model: nn.Module,
    selection: Selection,
    examples: Examples,
    settings: TuneSettings,
    folder: Path | None,
    report: Report | None,
    announce: Callable[[Forecast], None],
) -> Tuned:
    """The adapted model; after an error the model as it was, without adapters."""
    if is_quantised(model):
        model.state_dict()  # some CPUs repack weights to evaluate (bitsandbytes); this brings back the layout to train
    before = fingerprints(model)
    with restored(model, only_after_errors=True):
        adapted = attach_lora(model, selection.chosen, settings.lora, settings.training.seed)
        plan = forecast(model, selection, [p for p in adapted.parameters() if p.requires_grad])
        announce(plan)
        log = train(adapted, examples, settings.training, folder=folder, report=report)
        untouched = check_only_changed(before, fingerprints(adapted), allowed=())
    if folder is not None:
        save_adapter(adapted, folder / "adapter")
    return Tuned(adapted, log, plan, untouched)
