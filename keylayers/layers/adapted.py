"""What a loaded LoRA adapter changes: each tensor that it added to the network is accounted for, or refused by name."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.deltas import Delta, Deltas, DenseDelta, LowRankDelta, grouped, held_delta
from keylayers.layers.layer import Layer
from keylayers.layers.model_versions import alike, change_of
from keylayers.layers.structure import Node, first_names, logical_shape, parameters_of, tensors_of, unwrap, walk

VARIANTS = (
    "use_dora",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
    "use_qalora",
    "velora_config",
    "monteclora_config",
    "kasa_config",
    "use_bdlora",
    "megatron_config",
)
"""Settings of peft that make LoRA more than a product added to each weight."""
Precisions = Mapping[str, torch.dtype]
"""Stored name -> the precision of what an adapter stores in full; what is missing is taken as it was loaded."""


def deltas_from_adapter(
    peft_model: nn.Module, layers: Sequence[Layer], adapter: str = "default", *, unchanged: bool = False
) -> Deltas:
    """The deltas of a loaded peft LoRA model, relative to the base model with the adapter unloaded.

    Low-rank for LoRA on weights, fused experts and embeddings; dense for convolutions, for modules trained in full
    beside it (`modules_to_save`) and for single tokens. What no scored layer owns is the remainder. With `unchanged`,
    an adapter may change nothing yet: the first steps of a training whose rate warms up do not.

    Raises:
        BadInput: if the model holds no LoRA of that name, one that changes nothing, or one that is more than an added
            product of two matrices (DoRA and other variants, trained biases, an initialisation that changes the base).
    """
    config = getattr(peft_model, "peft_config", {}).get(adapter)
    if config is not None:
        check_plain(config, f"adapter {adapter!r}")
        if getattr(config, "bias", "none") != "none":
            raise BadInput(
                f"adapter {adapter!r} trained biases of the base model (bias={config.bias!r}); train without, or "
                "merge it and give both checkpoints."
            )
    found = changes_of_adapter(peft_model, adapter, unchanged=unchanged)
    return grouped(found, layers, logical_shapes(peft_model), source=f"LoRA adapter {adapter!r}")


def logical_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Parameter -> its shape before quantisation."""
    return {name: logical_shape(value) for name, value in parameters_of(model).items()}


def check_plain(config: Any, called: str) -> None:
    """Raises BadInput for an adapter that by its configuration does more to the network than add to its weights."""
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq", "lora_ga")):
        raise BadInput(
            f"{called} began with init_lora_weights={start!r}, which changes the base weights too; merge it and give "
            "both checkpoints."
        )
    if odd := next((kind for kind in VARIANTS if getattr(config, kind, None)), None):
        raise BadInput(
            f"{called} is more than a product of two matrices added to each weight ({odd} is set); merge it and give "
            "both checkpoints."
        )


def changes_of_adapter(
    peft_model: nn.Module, adapter: str, stored: Precisions | None = None, *, unchanged: bool = False
) -> dict[str, Delta]:
    """Parameter -> what the adapter changes in it; what it leaves as it was is left out.

    Raises:
        BadInput: as `deltas_from_adapter`.
    """
    from peft.tuners.lora import LoraLayer  # slow to import, and needed only here
    from peft.utils import ModulesToSaveWrapper
    from peft.utils.other import TrainableTokensWrapper

    parameters, places = parameters_of(peft_model), Counter(first_names(peft_model).values())
    shared = {name for name, first in first_names(peft_model).items() if places[first] > 1}
    found: dict[str, Delta] = {}
    seen, stored = False, stored or {}
    for node in walk(peft_model):
        module: Any = node.module
        if isinstance(module, ModulesToSaveWrapper) and adapter in module.modules_to_save:
            found |= _saved(node, module.modules_to_save[adapter], shared, stored)
        elif isinstance(module, TrainableTokensWrapper) and adapter in module.token_adapter.token_indices:
            found |= _tokens(node, module.token_adapter, adapter, shared, stored)
        elif isinstance(module, LoraLayer) and hasattr(module, "parameter_name"):
            found |= _parameters(node.name, module, adapter)
        elif isinstance(module, LoraLayer) and adapter in module.scaling:
            name = f"{node.name}.weight"
            if name not in parameters or adapter in module.lora_variant or module.lora_bias.get(adapter):
                raise BadInput(
                    f"{node.name} is adapted by {type(module).__name__} with more than a product of two matrices "
                    "added to its weight; merge the adapter and give both checkpoints."
                )
            found[name] = _product(module, adapter, alone=name in shared)
        else:
            continue
        seen = True
    if not seen:
        raise BadInput(f"the model holds no LoRA adapter named {adapter!r}; train one first or give two checkpoints.")
    changed = {name: delta for name, delta in found.items() if _changes(delta)}
    if unchanged and not changed:
        return found
    if not changed:
        raise BadInput(
            f"LoRA adapter {adapter!r} changes nothing: its products are 0 in all {len(found)} places, as before "
            "training; give one that was trained."
        )
    return changed


def _changes(delta: Delta) -> bool:
    factors = (delta.up, delta.down) if isinstance(delta, LowRankDelta) else (delta.dense(),)
    return all(bool(factor.any()) for factor in factors)


def _product(module: Any, adapter: str, *, alone: bool) -> Delta:
    """The change a LoRA module makes to its weight."""
    scaling = float(module.scaling[adapter])
    if adapter in module.lora_A and module.lora_A[adapter].weight.ndim == 2:
        return LowRankDelta(
            up=_copy(module.lora_B[adapter].weight),
            down=_copy(module.lora_A[adapter].weight),
            scaling=scaling,
            transposed=bool(getattr(module, "fan_in_fan_out", False)),
        )
    if adapter in module.lora_embedding_A:  # (rank, tokens) and (width, rank) for a weight of (tokens, width)
        up, down = module.lora_embedding_A[adapter].mT, module.lora_embedding_B[adapter].mT
        return LowRankDelta(_copy(up), _copy(down), scaling, hooked=False, alone=alone)
    return held_delta(_copy(module.get_delta_weight(adapter)), alone=alone)  # convolutions


def _parameters(name: str, module: Any, adapter: str) -> dict[str, Delta]:
    """Changes of parameters targeted by name (fused experts); peft nests one wrapper for each around the module."""
    found: dict[str, Delta] = {}
    while hasattr(module, "parameter_name"):
        if adapter in module.lora_A:
            found[f"{name}.{module.parameter_name}"] = _stack(module, adapter)
        module = module.base_layer
    return found


def _stack(module: Any, adapter: str) -> Delta:
    if module.num_experts == 1:
        up, down = module.lora_B[adapter].weight, module.lora_A[adapter].weight
        return LowRankDelta(_copy(up), _copy(down), float(module.scaling[adapter]), hooked=False)
    if not hasattr(module, "get_delta_factors"):  # peft before 0.21
        return held_delta(_copy(module.get_delta_weight(adapter)))
    left, right, scaling = module.get_delta_factors(adapter)
    return LowRankDelta(_copy(left), _copy(right), float(scaling), hooked=False)


def _saved(node: Node, trained: nn.Module, shared: set[str], stored: Precisions) -> dict[str, Delta]:
    """Changes of a module that peft trained in full as a copy, its running statistics included."""
    before, after = tensors_of(node.inner), tensors_of(trained)
    changes: dict[str, Delta] = {}
    for key, value in before.items():
        name = f"{node.name}.{key}"
        kept = after[key].detach()
        kept = kept.to(stored.get(name, kept.dtype))
        if not torch.equal(*alike(value.detach(), kept)):
            changes[name] = held_delta(change_of(value.detach(), kept), alone=name in shared)
    return changes


def _tokens(node: Node, layer: Any, adapter: str, shared: set[str], stored: Precisions) -> dict[str, Delta]:
    """The change of single tokens: peft keeps their new rows. A tied head that follows them changes with them."""
    name = f"{node.name}.weight"
    weight, rows = parameters_of(node.inner)["weight"].detach(), _copy(layer.trainable_tokens_delta[adapter])
    rows = rows.to(stored.get(f"{node.name}.trainable_tokens_delta", rows.dtype))
    index = torch.tensor(list(layer.token_indices[adapter]), device=weight.device)
    change = change_of(weight[index], rows)

    def load() -> Tensor:
        return change.new_zeros(weight.shape).index_copy(0, index, change)

    return {name: DenseDelta(load, alone=name in shared)}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def unloaded(peft_model: nn.Module) -> nn.Module:
    """The base model with its adapters taken out, bit-identical to before they were put in."""
    unload = getattr(peft_model, "unload", None)
    return unload() if callable(unload) else unwrap(peft_model)
