"""Thin shells over transformers.Trainer and peft: one training run, LoRA on exactly the asked layers, stage 1 of ILA.

`train` is both a file and its function, so it is imported as `from keylayers.training.trainer import train`.
"""

import importlib

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
