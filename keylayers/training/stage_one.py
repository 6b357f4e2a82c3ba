"""Stage 1 of ILA: LoRA on every layer, to learn what tuning on this data would change."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from keylayers.data.tokenise import Examples
from keylayers.layers.deltas import Deltas, deltas_from_adapter
from keylayers.layers.layer import Layer
from keylayers.training.adapters import LoraSettings, attach_lora, restored, save_adapter
from keylayers.training.train import Report, TrainLog, TrainSettings, train

ADAPTER = "adapter"
"""Where in its folder a finished training keeps its adapter."""


def learn_deltas(
    model: nn.Module,
    layers: Sequence[Layer],
    examples: Examples,
    *,
    scored: Sequence[Layer] | None = None,
    lora: LoraSettings | None = None,
    settings: TrainSettings | None = None,
    folder: Path | None = None,
    report: Report | None = None,
) -> tuple[Deltas, TrainLog]:
    """Deltas after LoRA training of these layers, and the training's log; the model is left as it was.

    The deltas are grouped by the `scored` layers (blocks, experts), by default the trained ones. With a folder, the
    training resumes there; its adapter is stored under `adapter/` in peft's own format.
    """
    settings = settings or TrainSettings()
    with restored(model):
        adapted = attach_lora(model, layers, lora or LoraSettings(), settings.seed)
        log = train(adapted, examples, settings, folder=folder, report=report)
        if folder is not None:
            save_adapter(adapted, folder / ADAPTER)
        return deltas_from_adapter(adapted, layers if scored is None else scored), log
