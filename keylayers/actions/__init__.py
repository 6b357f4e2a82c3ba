"""What is done to the selected layers: one idea, one file. Actions meet criteria only in a Selection."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keylayers.actions.cleansing import Cleanse as Cleanse
    from keylayers.actions.cleansing import Cleansed as Cleansed
    from keylayers.actions.cleansing import cleanse as cleanse
    from keylayers.actions.finetuning import Tuned as Tuned
    from keylayers.actions.finetuning import TuneSettings as TuneSettings
    from keylayers.actions.finetuning import tune as tune
    from keylayers.actions.fingerprinting import fingerprints as fingerprints
    from keylayers.actions.freezing import Forecast as Forecast
    from keylayers.actions.freezing import forecast as forecast
    from keylayers.actions.freezing import freeze as freeze
    from keylayers.actions.freezing import tuning_only as tuning_only
    from keylayers.actions.hardening import Hardened as Hardened
    from keylayers.actions.hardening import HardenSettings as HardenSettings
    from keylayers.actions.hardening import harden as harden
    from keylayers.actions.reverting import kept_only as kept_only
    from keylayers.actions.reverting import write_reverted as write_reverted
    from keylayers.actions.robust_finetuning import Rifted as Rifted
    from keylayers.actions.robust_finetuning import RiftSettings as RiftSettings
    from keylayers.actions.robust_finetuning import rift as rift
    from keylayers.actions.screen_fitting import fit_screen as fit_screen
    from keylayers.actions.screening import Screen as Screen
    from keylayers.actions.screening import ScreenSettings as ScreenSettings
    from keylayers.actions.screening import load_screen as load_screen
    from keylayers.actions.screening import save_screen as save_screen

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
