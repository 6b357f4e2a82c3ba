"""Thin shells over transformers.Trainer and peft: one training run, LoRA on exactly the asked layers, stage 1 of ILA.

`train` is both a file and its function, so it is imported as `from keylayers.training.trainer import train`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keylayers.training.adapters import LoraSettings as LoraSettings
    from keylayers.training.adapters import attach_lora as attach_lora
    from keylayers.training.adapters import lora_config as lora_config
    from keylayers.training.stage_one import learn_deltas as learn_deltas
    from keylayers.training.trainer import TrainLog as TrainLog
    from keylayers.training.trainer import TrainSettings as TrainSettings
    from keylayers.training.trainer import hold_statistics as hold_statistics

_HOME = {
    "LoraSettings": "adapters",
    "attach_lora": "adapters",
    "lora_config": "adapters",
    "TrainLog": "trainer",
    "TrainSettings": "trainer",
    "hold_statistics": "trainer",
    "learn_deltas": "stage_one",
}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = list(_HOME)
