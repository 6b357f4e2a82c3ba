"""Bringing a network in: hub id, local folder, `bundled:NAME`, or `package.module:factory` with safetensors weights."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keylayers.models.loading import LoadedModel as LoadedModel
    from keylayers.models.loading import load_model as load_model
    from keylayers.models.loading import load_shape as load_shape
    from keylayers.models.tuned import deltas_of as deltas_of

_HOME = {"LoadedModel": "loading", "load_model": "loading", "load_shape": "loading", "deltas_of": "tuned"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["LoadedModel", "deltas_of", "load_model", "load_shape"]
