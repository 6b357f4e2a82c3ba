"""What a configuration file selects, found without the exports: by peft on a real model, or a rule worded anew."""

import json
import re
from collections.abc import Mapping
from typing import Any

import peft
import yaml
from torch import nn


def lora_layers(model: nn.Module, files: Mapping[str, str]) -> set[str]:
    """Names of the layers that get LoRA when the file's fields are handed to peft, read off the parameters' names."""
    adapted: Any = peft.get_peft_model(model, peft.LoraConfig(**_arguments(files)))
    wrapped = {name.removesuffix(".weight") for name in adapted.base_model.targeted_parameter_names}
    owners = {name.rpartition(".")[0] for name in adapted.base_model.targeted_parameter_names}
    found = set()
    for key, value in adapted.named_parameters():
        if ".lora_A." in key:
            name = key.removeprefix("base_model.model.").partition(".lora_A.")[0].replace(".base_layer", "")
            assert value.requires_grad
            if name not in owners:
                found.add(name)
    return found | wrapped


def _arguments(files: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a LoRA configuration, by peft's names; a file's name tells whose it is."""
    (name, text), *rest = files.items()
    assert not rest
    if name == "adapter_config.json":
        given = json.loads(text)
        keep = ("r", "lora_alpha", "target_modules", "target_parameters", "rank_pattern", "alpha_pattern")
        return {key: given[key] for key in keep}
    if name == "unsloth.json":
        given = json.loads(text)
        given.pop("finetune_vision_layers", None)
        return given
    given = yaml.safe_load(text)
    modules = given["lora_target"].split(",") if "lora_target" in given else given["lora_target_modules"]
    if name == "trl.yaml" and len(modules) == 1:
        modules = modules[0]
    return {
        "r": given.get("lora_r") or given.get("lora_rank"),
        "lora_alpha": given["lora_alpha"],
        "target_modules": modules,
        "target_parameters": given.get("lora_target_parameters"),
        "rank_pattern": given.get("lora_rank_pattern", {}),
        "alpha_pattern": given.get("lora_alpha_pattern", {}),
    }


def unfrozen(model: nn.Module, files: Mapping[str, str]) -> set[str]:
    """Parameters that axolotl's unfrozen_parameters leave trainable, rows as `name[3]`; set on the model itself."""
    listed = yaml.safe_load(files["axolotl.yaml"])["unfrozen_parameters"]
    found = set()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        for pattern in listed:
            text, start, rows = pattern.partition("$[")
            literal = "".join("[.]" if c == "." and text[i + 1 : i + 2] != "+" else c for i, c in enumerate(text))
            if re.match(literal + ("$" if start else ""), name):
                parameter.requires_grad_(True)
                low, _, high = rows.rstrip("]").partition(":")
                found |= {f"{name}[{row}]" for row in range(int(low), int(high))} if rows else {name}
    return found
