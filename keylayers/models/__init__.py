"""Bringing a network in: hub id, local folder, `bundled:NAME`, or `package.module:factory` with safetensors weights."""

from typing import Any

_PUBLIC = {"LoadedModel": "loading", "load_model": "loading", "load_shape": "loading", "deltas_of": "tuned"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _PUBLIC:
        return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["LoadedModel", "deltas_of", "load_model", "load_shape"]
