"""Layers as score and selection files hold them."""

from typing import Any

from keylayers.files.strict_json import Record
from keylayers.layers.layer import Layer

LAYER_FIELDS = ("name", "block", "kind", "parameters", "size", "lora_size", "tied_to")


def layer_fields(layer: Layer) -> dict[str, Any]:
    """The layer as the fields of its JSON object."""
    return {name: getattr(layer, name) for name in LAYER_FIELDS}


def read_layer(record: Record) -> Layer:
    """The layer of a JSON object; all but name, kind and size may be absent in files written by hand."""
    return Layer(
        name=record.text("name"),
        block=record.whole("block") if record.has("block") else None,
        kind=record.text("kind"),
        parameters=record.texts("parameters") if record.has("parameters") else (),
        size=record.whole("size"),
        lora_size=record.whole("lora_size") if record.has("lora_size") else 0,
        tied_to=record.text("tied_to") if record.has("tied_to") else None,
    )
