"""What the LoRA targets share: layers named for peft, peft's answer to a configuration, the nearest selection."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from keylayers.errors import BadInput
from keylayers.exports.target import Adapter, CannotExpress, ExportSettings
from keylayers.files import reason
from keylayers.layers.adapter_undo import restored
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import unwrap
from keylayers.scores.selection import Selection
from keylayers.training.adapters import LoraSettings, adapted_layers, adapted_names, quiet_peft, rank_patterns
from keylayers.training.lora_names import LoraNames, has_matrix, name_for_peft


@dataclass(frozen=True)
class LoraWords:
    """A selection in the words that every LoRA configuration has some spelling of."""

    names: LoraNames
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, Any]


def lora_words(model: nn.Module, selection: Selection, settings: ExportSettings) -> LoraWords:
    """Names and rank patterns for peft. Raises CannotExpress for layers that are no weight matrix."""
    wholes = [layer.name for layer in selection.chosen if not has_matrix(layer)]
    if wholes:
        raise CannotExpress(
            f"LoRA adapts single weight matrices, and {len(wholes)} of the {len(selection)} selected layers are none, "
            f"first {wholes[0]!r} (axolotl-full takes whole blocks)."
        )
    names = name_for_peft(model, selection.chosen)
    lora = LoraSettings(settings.rank, settings.alpha)
    return LoraWords(names, *rank_patterns(names, lora, settings.ranks or {}))


def one_rank(words: LoraWords, tool: str) -> None:
    """Raises CannotExpress where ranks differ, for a tool that has one rank for all layers."""
    if words.rank_pattern:
        raise CannotExpress(
            f"{tool} has one rank for all layers, and {len(words.rank_pattern)} are to have their own; "
            "peft, axolotl and unsloth take ranks per layer."
        )


def adapters_by_peft(model: nn.Module, config: Any) -> dict[str, Adapter]:
    """Layer name -> adapter that peft attaches for this LoraConfig; the model is left as it is.

    The adapters are made without storage, so the model may be on the meta device or larger than memory.

    Raises:
        CannotExpress: with peft's reason, if it takes the configuration for this model not at all.
        BadInput: if the model carries LoRA already.
    """
    from peft import get_peft_model

    if present := adapted_names(model):
        raise BadInput(f"the model carries LoRA already, on {len(present)} layers; merge or unload it, then export.")
    with restored(model), quiet_peft():
        try:
            adapted = get_peft_model(unwrap(model), config, low_cpu_mem_usage=True)  # type: ignore[arg-type]
        except Exception as error:  # what it raises for a model it was not made for is no part of its interface
            raise CannotExpress(f"peft cannot adapt {type(unwrap(model)).__name__} so: {reason(error)}.") from error
        return {
            name: Adapter(module.r["default"], module.scaling["default"])
            for name, module in adapted_layers(adapted).items()
        }


def nearest_matrices(model: nn.Module, selection: Selection, *, tensors: bool = True) -> Selection | None:
    """The weight matrices that hold any of the selected parameters; without `tensors` only those that are modules."""
    asked = {parameter.partition("[")[0] for layer in selection.chosen for parameter in layer.parameters}
    matrices = [layer for layer in _matrices(model) if asked.intersection(layer.parameters)]
    if not tensors and matrices:
        modules = set(name_for_peft(model, matrices).modules)
        matrices = [layer for layer in matrices if layer.name in modules]
    kind = "weight matrices" if tensors else "linear modules"
    return _chosen(model, selection, matrices, f"the {kind} of ({selection.policy})")


def without(model: nn.Module, selection: Selection, names: set[str]) -> Selection | None:
    """The selection without these layers; None where nothing is left."""
    left = [layer for layer in selection.chosen if layer.name not in names]
    return _chosen(model, selection, left, f"({selection.policy}) without {len(names)} layers")


def _chosen(model: nn.Module, asked: Selection, layers: list[Layer], policy: str) -> Selection | None:
    """These layers among the candidates of the asked selection, or among all matrices where they are none of those."""
    names = {layer.name for layer in layers}
    if not names or names == set(asked.names):
        return asked if names else None
    among = asked.layers if names <= {layer.name for layer in asked.layers} else tuple(_matrices(model))
    mask = np.array([layer.name in names for layer in among])
    return Selection(among, mask, policy, {}, allow_total=True)


def _matrices(model: nn.Module) -> list[Layer]:
    """Every layer that LoRA could adapt: linear maps in forward order, then routers, then convolutions."""
    found: list[Layer] = []
    for granularity in ("linear", "router", "conv"):
        try:
            found += named_layers(model, granularity)
        except BadInput:
            continue  # the network has none of this sort
    return found


def strings(value: object, field: str, tool: str) -> list[str]:
    """A list of names as a configuration file spells it. Raises CannotExpress for what the tool would not read."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CannotExpress(f"{tool} reads {field} as a list of names, not as {value!r}.")
    return value


def whole_number(value: float, what: str, tool: str) -> int:
    """The number as an int. Raises CannotExpress where it is none."""
    if not float(value).is_integer():
        raise CannotExpress(f"{tool} takes whole numbers for {what}, not {value:g}; choose alpha and ranks to fit.")
    return int(value)


def loraconfig(**arguments: Any) -> Any:
    """peft's LoraConfig of these arguments. Raises CannotExpress where peft refuses them."""
    from peft import LoraConfig

    try:
        return LoraConfig(**arguments)
    except (ValueError, TypeError) as error:
        raise CannotExpress(f"peft refuses these settings: {reason(error)}.") from error


def mapping_of(files: Mapping[str, str], name: str) -> dict[str, Any]:
    """The one YAML mapping of an export. Raises CannotExpress for a file that holds none."""
    import yaml

    value = yaml.safe_load(files[name])
    if not isinstance(value, dict):
        raise CannotExpress(f"{name} holds no YAML mapping.")
    return value
