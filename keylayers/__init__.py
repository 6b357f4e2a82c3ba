"""Layers get scores from criteria; a selection of layers is acted upon; recipes and studies compose and measure both.

Names are loaded when first used, so that importing keylayers imports neither torch nor transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "named_layers": "layers",
    "capture": "layers",
    "skipped": "layers",
    "scaled": "layers",
    "replaced": "layers",
    "load_model": "models",
    "LayerScores": "scores",
    "Selection": "scores",
    "select": "scores",
    "agreement": "scores",
    "tuning_only": "actions",
    "freeze": "actions",
    "export": "exports",
    "LayerSelector": "exports",
    "load_scores": "scores",
}
_FOLDERS = (
    "actions",
    "criteria",
    "data",
    "errors",
    "exports",
    "layers",
    "measures",
    "models",
    "runs",
    "scores",
    "training",
    "world",
)

if TYPE_CHECKING:
    from keylayers.actions import freeze as freeze
    from keylayers.actions import tuning_only as tuning_only
    from keylayers.exports import LayerSelector as LayerSelector
    from keylayers.exports import export as export
    from keylayers.layers import capture as capture
    from keylayers.layers import named_layers as named_layers
    from keylayers.layers import replaced as replaced
    from keylayers.layers import scaled as scaled
    from keylayers.layers import skipped as skipped
    from keylayers.models import load_model as load_model
    from keylayers.scores import LayerScores as LayerScores
    from keylayers.scores import Selection as Selection
    from keylayers.scores import agreement as agreement
    from keylayers.scores import load_scores as load_scores
    from keylayers.scores import select as select

__all__ = [*_HOME, *_FOLDERS]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"keylayers.{_HOME[name]}"), name)
    if name in _FOLDERS:
        return importlib.import_module(f"keylayers.{name}")
    raise AttributeError(f"module 'keylayers' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
