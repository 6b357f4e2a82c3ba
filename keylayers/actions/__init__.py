"""What is done to the selected layers: one idea, one file. Actions meet criteria only in a Selection."""

import importlib
from typing import Any

_HOME = {
    "tuning_only": "freezing",
    "freeze": "freezing",
    "forecast": "freezing",
    "Forecast": "freezing",
    "tune": "finetuning",
    "cleanse": "cleansing",
    "harden": "hardening",
    "rift": "robust_finetuning",
    "TuneSettings": "finetuning",
    "Tuned": "finetuning",
    "fingerprints": "fingerprinting",
    "kept_only": "reverting",
    "write_reverted": "reverting",
    "Screen": "screening",
    "ScreenSettings": "screening",
    "load_screen": "screening",
    "save_screen": "screening",
    "fit_screen": "screen_fitting",
    "Cleanse": "cleansing",
    "Cleansed": "cleansing",
    "HardenSettings": "hardening",
    "Hardened": "hardening",
    "RiftSettings": "robust_finetuning",
    "Rifted": "robust_finetuning",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = list(_HOME)
