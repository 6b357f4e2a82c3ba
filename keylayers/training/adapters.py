"""LoRA on exactly the layers that were asked for, by peft, checked against the model afterwards."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Lt
from torch import nn

from keylayers.errors import BadInput, BadSelection
from keylayers.files import reason
from keylayers.layers.adapter_undo import restored
from keylayers.layers.layer import Layer
from keylayers.layers.structure import walk
from keylayers.settings import Count, Positive, Settings
from keylayers.training.lora_names import LoraNames, name_for_peft


@dataclass(frozen=True)
class LoraSettings(Settings):
    """Shape of the adapters."""

    rank: Count = 8
    alpha: Positive = 16.0
    """The update is (alpha / rank) * B @ A."""
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0


def lora_config(
    model: nn.Module, layers: Sequence[Layer], settings: LoraSettings, ranks: Mapping[str, int] | None = None
) -> Any:
    """A peft LoraConfig that adapts exactly these layers: see `lora_names` for how it spells them.

    `ranks` gives layers ranks of their own, by name; alpha / rank stays that of the settings.

    Raises:
        BadSelection: for none, or for layers peft cannot adapt (single experts, whole blocks).
    """
    from peft import LoraConfig

    names = name_for_peft(model, layers)
    rank_pattern, alpha_pattern = rank_patterns(names, settings, ranks or {})
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=0.0 if names.tensors else settings.dropout,  # peft has no dropout for parameters
        target_modules=names.target_modules,
        target_parameters=list(names.tensors) or None,
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )


def rank_patterns(
    names: LoraNames, settings: LoraSettings, ranks: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, Any]]:
    """peft's `rank_pattern` and `alpha_pattern` for the layers whose rank differs from the common one."""
    own = {name: ranks[name] for name in names.layers if ranks.get(name, settings.rank) != settings.rank}
    alphas = {name: settings.alpha * rank / settings.rank for name, rank in own.items()}
    return (
        {names.exact(name): rank for name, rank in own.items()},
        {names.exact(name): whole(alpha) for name, alpha in alphas.items()},
    )


def whole(number: float) -> float:
    """The number, as an int where it is one."""
    return int(number) if float(number).is_integer() else number


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
    with restored(model, only_after_errors=True), quiet_peft():
        try:
            adapted = get_peft_model(model, config)
        except Exception as error:  # what it raises for a model it was not made for is no part of its interface
            raise BadInput(
                f"peft cannot adapt this selection: {reason(error)}",
                "select layers without it (`select`)",
                "train in full (`method=full`)",
                "give a model that was tuned elsewhere (`tuned`)",
            ) from error
        wanted, found = {layer.name for layer in layers}, adapted_names(adapted)
        if wanted != found:
            raise BadSelection(
                f"peft adapted other layers than asked: {len(wanted - found)} missing {sorted(wanted - found)[:3]}, "
                f"{len(found - wanted)} extra {sorted(found - wanted)[:3]}; leave them out of the selection."
            )
    return adapted


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Silences what peft says of its own calls, not of the user's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")  # peft sets it right for Conv1D itself
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        yield


def adapted_names(model: nn.Module) -> set[str]:
    """Unwrapped names of the modules, and fused parameters, that carry LoRA."""
    return set(adapted_layers(model))


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Unwrapped name -> peft's LoraLayer, of the modules, and fused parameters, that carry LoRA."""
    from peft.tuners.lora import LoraLayer

    layers = {}
    for node in walk(model):
        module: Any = node.module
        while hasattr(module, "parameter_name"):  # one wrapper per parameter that is no module's of its own, nested
            owned = module.parameter_name
            layers[node.name if owned == "weight" else f"{node.name}.{owned}"] = module  # a router's is called weight
            module = module.base_layer
        if isinstance(module, LoraLayer):
            layers[node.name] = module
    return layers


def save_adapter(adapted: Any, folder: Path) -> None:
    """Stores the adapters in peft's own format, and nothing else.

    Told otherwise, peft stores the whole embedding and head beside them as soon as `lm_head` is adapted.
    """
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
