"""What a network is made of: layer records and names, capture, intervention, weight deltas, gates on them."""

import importlib
from typing import Any

_HOME = {
    "Layer": "layer",
    "GRANULARITIES": "layer",
    "layer_named": "layer",
    "total_size": "layer",
    "named_layers": "naming",
    "find_blocks": "blocks",
    "role_of": "roles",
    "unwrap": "structure",
    "canonical_name": "structure",
    "module_named": "structure",
    "parameters_of": "structure",
    "tensors_of": "structure",
    "capture": "capturing",
    "skipped": "intervene",
    "scaled": "intervene",
    "replaced": "intervene",
    "scaled_skips": "skips",
    "Deltas": "deltas",
    "deltas_from_adapter": "adapted",
    "deltas_from_checkpoints": "deltas",
    "gated": "gating",
    "frozen": "gating",
    "tensors_on_disk": "tensors",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = list(_HOME)
