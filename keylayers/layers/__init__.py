"""What a network is made of: layer records and names, capture, intervention, weight deltas, gates on them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keylayers.layers.adapted import deltas_from_adapter as deltas_from_adapter
    from keylayers.layers.blocks import find_blocks as find_blocks
    from keylayers.layers.capturing import capture as capture
    from keylayers.layers.deltas import Deltas as Deltas
    from keylayers.layers.deltas import deltas_from_checkpoints as deltas_from_checkpoints
    from keylayers.layers.gating import frozen as frozen
    from keylayers.layers.gating import gated as gated
    from keylayers.layers.intervene import replaced as replaced
    from keylayers.layers.intervene import scaled as scaled
    from keylayers.layers.intervene import skipped as skipped
    from keylayers.layers.layer import GRANULARITIES as GRANULARITIES
    from keylayers.layers.layer import Layer as Layer
    from keylayers.layers.layer import layer_named as layer_named
    from keylayers.layers.layer import total_size as total_size
    from keylayers.layers.naming import named_layers as named_layers
    from keylayers.layers.roles import role_of as role_of
    from keylayers.layers.skips import scaled_skips as scaled_skips
    from keylayers.layers.structure import canonical_name as canonical_name
    from keylayers.layers.structure import module_named as module_named
    from keylayers.layers.structure import parameters_of as parameters_of
    from keylayers.layers.structure import tensors_of as tensors_of
    from keylayers.layers.structure import unwrap as unwrap
    from keylayers.layers.tensors import tensors_on_disk as tensors_on_disk

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
