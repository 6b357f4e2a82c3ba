"""LoRA on exactly the layers that were asked for, by peft, checked against the model afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from keylayers.errors import BadInput, BadSelection
from keylayers.layers.layer import Layer
from keylayers.layers.structure import walk


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the adapters."""

    rank: int = 8
    alpha: float = 16.0
    """The update is (alpha / rank) * B @ A."""
    dropout: float = 0.0


def lora_config(layers: Sequence[Layer], settings: LoraSettings) -> Any:
    """A peft LoraConfig that names exactly these layers in full: modules, and fused expert tensors as parameters.

    Full names escape peft's silent matches: no suffix reaches a layer that was not asked for, and `lm_head` or an expert
    index is never taken for something else.

    Raises:
        BadSelection: for none, or for layers peft cannot adapt (single experts, whole blocks).
    """
    from peft import LoraConfig

    if not layers:
        raise BadSelection("no layer to adapt: an empty list would make peft adapt all of them.")
    tensors = [layer.name for layer in layers if layer.name in layer.parameters]
    modules = [layer.name for layer in layers if f"{layer.name}.weight" in layer.parameters]
    other = [layer.name for layer in layers if layer.name not in {*tensors, *modules}]
    if other:
        raise BadSelection(
            f"LoRA adapts weight matrices, but {other[0]!r} is none; select at --granularity linear, or --method full."
        )
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0 if tensors else settings.dropout,  # peft has no dropout for fused expert tensors
        target_modules=modules or None,
        target_parameters=tensors or None,
    )


def attach_lora(model: nn.Module, layers: Sequence[Layer], settings: LoraSettings, seed: int) -> nn.Module:
    """The model with fresh, seeded adapters on exactly these layers (peft edits it in place); all else is frozen.

    Raises:
        BadSelection: if peft adapted other modules than were asked for.
    """
    import warnings

    from peft import get_peft_model

    torch.manual_seed(seed)  # peft draws A from the global generator
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # peft sets it right for Conv1D itself
        try:
            adapted = get_peft_model(model, lora_config(layers, settings))
        except ValueError as error:
            raise BadInput(f"peft cannot adapt this selection: {str(error).splitlines()[0]}") from error
    wanted, found = {layer.name for layer in layers}, adapted_names(adapted)
    if wanted != found:
        raise BadSelection(
            f"peft adapted other modules than asked: missing {sorted(wanted - found)[:3]}, extra {sorted(found - wanted)[:3]}."
        )
    return adapted


def adapted_names(model: nn.Module) -> set[str]:
    """Unwrapped names of the modules, and fused parameters, that carry LoRA."""
    from peft.tuners.lora import LoraLayer

    names = set()
    for node in walk(model):
        module: Any = node.module
        while hasattr(module, "parameter_name"):  # one wrapper per fused parameter, nested
            names.add(f"{node.name}.{module.parameter_name}")
            module = module.base_layer
        if isinstance(module, LoraLayer):
            names.add(node.name)
    return names
