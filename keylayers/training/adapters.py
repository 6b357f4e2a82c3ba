"""LoRA on exactly the layers that were asked for, by peft, checked against the model afterwards."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from keylayers.errors import BadInput, BadSelection
from keylayers.layers.layer import Layer
from keylayers.layers.restoring import restored
from keylayers.layers.structure import parameters_of, walk

OLDER_EXPERTS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Names of experts' parts and routers before transformers 5 fused them; peft still translates them."""


@dataclass(frozen=True)
class LoraSettings:
    """Shape of the adapters."""

    rank: int = 8
    alpha: float = 16.0
    """The update is (alpha / rank) * B @ A."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadInput(f"rank of LoRA is {self.rank}: expected at least 1.")
        if not 0 <= self.dropout < 1:
            raise BadInput(f"dropout of LoRA is {self.dropout}: expected a share from 0 to below 1.")


def lora_config(model: nn.Module, layers: Sequence[Layer], settings: LoraSettings) -> Any:
    """A peft LoraConfig that names exactly these layers in full: modules, and fused expert tensors as parameters.

    Full names leave peft no room to guess: block 1 is not block 11, an expert's number is no block's, and `lm_head` is
    there only if it was asked for. Two kinds of modules are named by their weight instead: routers, which are no linear
    modules to peft, and in mixtures of experts those whose names peft takes for an older transformers' experts, so that
    one dense `gate_proj` would stand for the fused experts of every block.

    Raises:
        BadSelection: for none, or for layers peft cannot adapt (single experts, whole blocks).
    """
    from peft import LoraConfig

    if not layers:
        raise BadSelection("no layer to adapt: an empty list would make peft adapt all of them.")
    adaptable = (nn.Linear, nn.Embedding, _ConvNd, Conv1D)
    found = {node.name: node.inner for node in walk(model)}
    fused = any(value.ndim == 3 for value in parameters_of(model).values())
    modules, tensors = list[str](), list[str]()
    for layer in layers:
        if layer.name in layer.parameters:
            tensors.append(layer.name)
        elif f"{layer.name}.weight" not in layer.parameters:
            raise BadSelection(
                f"LoRA adapts weight matrices, but {layer.name!r} is none; select at --granularity linear, or "
                "--method full."
            )
        elif isinstance(found.get(layer.name), adaptable) and not (fused and _last(layer.name) in OLDER_EXPERTS):
            modules.append(layer.name)
        else:
            tensors.append(f"{layer.name}.weight")
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=0.0 if tensors else settings.dropout,  # peft has no dropout for parameters
        target_modules=modules,
        target_parameters=tensors or None,
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def attach_lora(model: nn.Module, layers: Sequence[Layer], settings: LoraSettings, seed: int) -> nn.Module:
    """The model with fresh, seeded adapters on exactly these layers (peft edits it in place); all else is frozen.

    Raises:
        BadSelection: if peft adapted other modules than were asked for; the model is then as it was.
        BadInput: if peft cannot adapt one of them, or the model carries adapters already.
    """
    from peft import get_peft_model

    if present := sorted(adapted_names(model)):
        raise BadInput(
            f"the model carries LoRA already, on {len(present)} layers ({present[0]}, ...); merge or unload it first."
        )
    config = lora_config(model, layers, settings)
    torch.manual_seed(seed)  # peft draws A from the global generator
    with restored(model, only_after_errors=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # peft sets it right for Conv1D itself
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft's call, not the user's
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise BadInput(
                f"peft cannot adapt this selection: {reason} Leave that layer out, or --method full."
            ) from error
        wanted, found = {layer.name for layer in layers}, adapted_names(adapted)
        if wanted != found:
            raise BadSelection(
                f"peft adapted other layers than asked: {len(wanted - found)} missing {sorted(wanted - found)[:3]}, "
                f"{len(found - wanted)} extra {sorted(found - wanted)[:3]}; leave them out of the selection."
            )
    return adapted


def adapted_names(model: nn.Module) -> set[str]:
    """Unwrapped names of the modules, and fused parameters, that carry LoRA."""
    from peft.tuners.lora import LoraLayer

    names = set()
    for node in walk(model):
        module: Any = node.module
        while hasattr(module, "parameter_name"):  # one wrapper per parameter that is no module's of its own, nested
            owned = module.parameter_name
            names.add(node.name if owned == "weight" else f"{node.name}.{owned}")  # a router's is called weight
            module = module.base_layer
        if isinstance(module, LoraLayer):
            names.add(node.name)
    return names


def save_adapter(adapted: Any, folder: Path) -> None:
    """Stores the adapters in peft's own format, and nothing else.

    Told otherwise, peft stores the whole embedding and head beside them as soon as `lm_head` is adapted.
    """
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
