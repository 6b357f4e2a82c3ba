"""A selection as other tools' configuration, read back by that tool's own matching rule before it is given out."""

import importlib
from typing import TYPE_CHECKING, Any

from keylayers.errors import UnknownName

if TYPE_CHECKING:
    from keylayers.exports.ranks import ranks_by_score as ranks_by_score
    from keylayers.exports.selector import LayerSelector as LayerSelector
    from keylayers.exports.target import CannotExpress as CannotExpress
    from keylayers.exports.target import Export as Export
    from keylayers.exports.target import ExportSettings as ExportSettings
    from keylayers.exports.target import Target
    from keylayers.exports.target import export as export

TARGETS = {
    "peft": "LoraConfig as adapter_config.json: exact module names, fused experts as target_parameters",
    "trl": "YAML for `trl sft --config`: lora_target_modules, lora_target_parameters",
    "axolotl": "YAML for LoRA: lora_target_modules, lora_target_parameters",
    "axolotl-full": "YAML for full fine-tuning: unfrozen_parameters",
    "llamafactory": "YAML for LoRA: lora_target",
    "unsloth": "arguments of FastLanguageModel.get_peft_model as JSON: target_modules, target_parameters",
    "spectrum": "its ranking file (JSON) and its list of unfrozen parameters (YAML)",
    "mergekit": "YAML that takes the selected layers from the tuned model and all others from the base",
    "easyedit": "hyper-parameters (YAML) of an editing method: which layers are rewritten",
}
"""Name -> one line on what is written."""

_FILES = {name: name.replace("-", "_") for name in TARGETS}
_HOME = {
    "export": "target",
    "Export": "target",
    "ExportSettings": "target",
    "CannotExpress": "target",
    "LayerSelector": "selector",
    "ranks_by_score": "ranks",
}
__all__ = ["TARGETS", "get", *_HOME]


def get(name: str) -> "Target":
    """The target of that name. Raises UnknownName with the nearest names."""
    if name not in TARGETS:
        raise UnknownName("export target", name, TARGETS)
    return importlib.import_module(f"{__name__}.{_FILES[name]}").TARGET


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
