"""What is done to the selected layers: one idea, one file. Actions meet criteria only in a Selection.

`tune`, `harden`, `rift` and `cleanse` are both files and their functions: `from keylayers.actions.tune import tune`.
"""

import importlib
from typing import Any

_HOME = {
    "tuning_only": "tuning",
    "freeze": "tuning",
    "forecast": "tuning",
    "Forecast": "tuning",
    "TuneSettings": "tune",
    "Tuned": "tune",
    "fingerprints": "proof",
    "kept_only": "revert",
    "write_reverted": "revert",
    "Screen": "screen",
    "ScreenSettings": "screen",
    "load_screen": "screen",
    "save_screen": "screen",
    "fit_screen": "screen_fit",
    "Cleanse": "cleanse",
    "Cleansed": "cleanse",
    "HardenSettings": "harden",
    "Hardened": "harden",
    "RiftSettings": "rift",
    "Rifted": "rift",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = list(_HOME)
