"""Stage 1 of ILA: LoRA on every layer, to learn what tuning on this data would change."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from keylayers.data.tokenisation import Examples
from keylayers.layers.adapted import deltas_from_adapter
from keylayers.layers.deltas import Deltas
from keylayers.layers.layer import Layer
from keylayers.runs.seals import sealed_folder
from keylayers.training.adapters import LoraSettings, attach_lora, restored, save_adapter
from keylayers.training.trainer import Report, TrainLog, TrainSettings, train

ADAPTER = "adapter"
"""Where in its folder a finished training keeps its adapter."""

Look = Callable[[int, Deltas, TrainLog], bool]
"""(steps done, the deltas there, the training's log so far) -> whether to stop there."""


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
    training resumes there; its adapter is stored under `adapter/` in peft's own format, sealed.
    """
    settings = settings or TrainSettings()
    with restored(model):
        adapted = attach_lora(model, layers, lora or LoraSettings(), settings.seed)
        log = train(adapted, examples, settings, folder=folder, report=report)
        if folder is not None:
            with sealed_folder(folder / ADAPTER) as place:
                save_adapter(adapted, place)
        scored = layers if scored is None else scored
        return deltas_from_adapter(adapted, scored, unchanged=settings.stop_after is not None), log


def learn_until(
    model: nn.Module,
    layers: Sequence[Layer],
    examples: Examples,
    *,
    steps: Sequence[int],
    look: Look,
    answered: Mapping[int, bool],
    folder: Path,
    settings: TrainSettings,
    scored: Sequence[Layer] | None = None,
    lora: LoraSettings | None = None,
    report: Report | None = None,
) -> tuple[Deltas, TrainLog, int]:
    """`learn_deltas` up to the first of some steps, ascending, where `look` says to stop, else the last of them.

    Gives the deltas there, the log and the step. At every look the model is the base model again, as any criterion
    wants it, and training goes on from its saved state: the deltas are bit for bit those of a training with
    `stop_after` at that step. `answered` is what the looks of an interrupted run said, by step; they are not repeated.
    It must hold all of them, since training cannot go back to an earlier step. The log's seconds are those since the
    look before.
    """
    for step in steps:
        stops = answered.get(step)
        if stops is False and step != steps[-1]:
            continue
        deltas, log = learn_deltas(
            model,
            layers,
            examples,
            scored=scored,
            lora=lora,
            settings=replace(settings, stop_after=step),
            folder=folder,
            report=report,
        )
        if stops is None:
            stops = look(step, deltas, log)
        if stops:
            break
    return deltas, log, step
