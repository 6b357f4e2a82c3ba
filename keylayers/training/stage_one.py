"""Stage 1 of ILA: LoRA on every layer, to learn what tuning on this data would change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from keylayers.data.tokenise import Examples
from keylayers.layers.deltas import Deltas, deltas_from_adapter, unloaded
from keylayers.layers.layer import Layer
from keylayers.training.adapters import LoraSettings, attach_lora
from keylayers.training.train import Report, TrainLog, TrainSettings, train

DONE = "adapter"


def learn_deltas(
    model: nn.Module,
    layers: Sequence[Layer],
    examples: Examples,
    *,
    lora: LoraSettings | None = None,
    settings: TrainSettings | None = None,
    folder: Path | None = None,
    report: Report | None = None,
) -> tuple[Deltas, TrainLog]:
    """Low-rank deltas of all layers after LoRA training, and the training's log; the model is left as it was.

    With a folder, the training resumes there; its adapter is stored under `adapter/` in peft's own format.
    """
    adapted: Any = attach_lora(model, layers, lora or LoraSettings(), seed=(settings or TrainSettings()).seed)
    try:
        log = train(adapted, examples, settings or TrainSettings(), folder=folder, report=report)
        if folder is not None:
            adapted.save_pretrained(folder / DONE)
        return deltas_from_adapter(adapted, layers), log
    finally:
        unloaded(adapted)


def load_deltas(model: nn.Module, layers: Sequence[Layer], adapter: Path) -> Deltas:
    """The deltas of a stored peft adapter; the model is left as it was."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, str(adapter))
    try:
        return deltas_from_adapter(adapted, layers)
    finally:
        unloaded(adapted)
