"""axolotl, LoRA: YAML with lora_target_modules, lora_target_parameters and ranks per layer.

How axolotl makes a LoraConfig of it is restated from axolotl-ai-cloud/axolotl, src/axolotl/loaders/adapter.py
(_build_peft_lora_config) and what it refuses beforehand from src/axolotl/utils/schemas/peft.py and config.py
(check_lora_target_modules_regex): alpha and ranks are whole numbers, names must compile as regular expressions, and
dropout is 0 beside lora_target_parameters. lora_target_linear would add every linear module, so it is left out.
"""

import re
from collections.abc import Mapping

from torch import nn

from keylayers.exports.loaded import require_loadable
from keylayers.exports.lora import adapters_by_peft, lora_words, loraconfig, mapping_of, nearest_matrices, whole_number
from keylayers.exports.target import Adapter, CannotExpress, ExportSettings, Target
from keylayers.exports.yaml_format import yaml_text
from keylayers.scores.selection import Selection

FILE = "axolotl.yaml"


def render(model: nn.Module, selection: Selection, settings: ExportSettings) -> dict[str, str]:
    """The LoRA part of an axolotl configuration."""
    require_loadable(model, "axolotl", generates=True)
    words = lora_words(model, selection, settings)
    values = {
        "base_model": settings.model,
        "adapter": "lora",
        "lora_r": settings.rank,
        "lora_alpha": whole_number(settings.alpha, "alpha", "axolotl"),
        "lora_dropout": 0.0,
        "lora_target_modules": words.names.target_modules,
    }
    if words.names.tensors:
        values["lora_target_parameters"] = list(words.names.tensors)
    if words.rank_pattern:
        values["lora_rank_pattern"] = words.rank_pattern
        values["lora_alpha_pattern"] = {
            key: whole_number(alpha, f"alpha ({key})", "axolotl") for key, alpha in words.alpha_pattern.items()
        }
    notes = ["merge into your configuration; without lora_target_linear, which would add every linear module"]
    return {FILE: yaml_text(values, selection, notes)}


def adapters(model: nn.Module, files: Mapping[str, str]) -> dict[str, Adapter]:
    """What peft attaches for the LoraConfig that axolotl makes of the file."""
    given = mapping_of(files, FILE)
    _refuse_as_axolotl(given)
    if given.get("adapter") not in ("lora", "qlora"):
        return {}
    modules = given.get("lora_target_modules") or []
    if given.get("lora_target_linear"):
        modules = sorted({*([modules] if isinstance(modules, str) else modules), *_linear_endings(model)})
    patterns = {name: given[f"lora_{name}"] for name in ("rank_pattern", "alpha_pattern") if given.get(f"lora_{name}")}
    config = loraconfig(
        r=given["lora_r"],
        lora_alpha=given["lora_alpha"],
        lora_dropout=given.get("lora_dropout") or 0.0,
        target_modules=modules,
        target_parameters=given.get("lora_target_parameters") or [],
        layers_to_transform=given.get("peft_layers_to_transform"),
        layers_pattern=given.get("peft_layers_pattern"),
        modules_to_save=given.get("lora_modules_to_save") or None,
        exclude_modules=given.get("lora_exclude_modules") or None,
        fan_in_fan_out=given.get("lora_fan_in_fan_out"),
        bias="none",
        task_type="CAUSAL_LM",
        **patterns,
    )
    return adapters_by_peft(model, config)


def _refuse_as_axolotl(given: Mapping[str, object]) -> None:
    """What axolotl's schema refuses before it loads the model."""
    modules = given.get("lora_target_modules")
    for pattern in modules if isinstance(modules, list) else []:
        try:
            re.compile(str(pattern))
        except re.error as error:
            raise CannotExpress(f"axolotl takes only names that are regular expressions too: {pattern!r}.") from error
    if given.get("lora_target_parameters") and given.get("lora_dropout"):
        raise CannotExpress("axolotl takes no lora_dropout beside lora_target_parameters.")
    patterns = [given.get(f"lora_{name}_pattern") or {} for name in ("rank", "alpha")]
    numbers = [value for pattern in patterns if isinstance(pattern, Mapping) for value in pattern.values()]
    if any(not isinstance(number, int) or number < 1 for number in numbers):
        raise CannotExpress("axolotl takes whole numbers above 0 for ranks and alphas.")


def _linear_endings(model: nn.Module) -> set[str]:
    """Last parts of the names of all linear modules but the head, which lora_target_linear stands for."""
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return linear - {"lm_head", "embed_out"}


TARGET = Target(
    name="axolotl",
    unit="layers",
    render=render,
    read_back=lambda model, files: set(adapters(model, files)),
    nearest=nearest_matrices,
    usage="merge axolotl.yaml into your configuration, then: axolotl train CONFIG",
    adapters=adapters,
)
