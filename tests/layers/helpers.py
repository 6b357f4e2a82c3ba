"""What the tests of this folder share: a model's full state, copies with noise, outputs as one tensor."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tests.tiny_models import build, inputs

TEXT_ARCHITECTURES_WITH_EXPERTS = ("olmoe", "qwen3-moe", "mixtral", "deepseek-v3", "gpt-oss")


def logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Logits without labels where the model can do without them, with the cache off."""
    out = model(**batch)
    return out if isinstance(out, Tensor) else out.logits


def forward_batch(name: str, batch: int = 2, seq: int = 12, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of that tiny model without labels, except for T5, which makes its decoder's inputs from them."""
    given = inputs(name, batch=batch, seq=seq, seed=seed)
    if name != "t5":
        given.pop("labels", None)
    return given


def full_state(model: nn.Module) -> dict[str, object]:
    """Everything an observer may not change: bits, identities, flags, hooks, gradients, random state."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {
        "tensors": {key: value.clone() for key, value in model.state_dict().items()},
        "identities": {key: id(value) for key, value in model.named_parameters(remove_duplicate=False)}
        | {key: id(value) for key, value in model.named_buffers(remove_duplicate=False)},
        "requires_grad": {key: value.requires_grad for key, value in model.named_parameters()},
        "gradients": {key: value.grad for key, value in model.named_parameters()},
        "training": {key: module.training for key, module in modules.items()},
        "hooks": {
            key: [
                len(table)
                for table in (
                    module._forward_hooks,
                    module._forward_pre_hooks,
                    module._backward_hooks,
                    module._backward_pre_hooks,
                )
            ]
            for key, module in modules.items()
        },
        "attributes": {key: sorted(vars(module)) for key, module in modules.items()},
        "random": torch.get_rng_state().clone(),
    }


def same_state(before: object, after: object) -> bool:
    """Equality of two full states; tensors by their bits."""
    if isinstance(before, Tensor):
        return isinstance(after, Tensor) and before.dtype == after.dtype and torch.equal(before, after)
    if isinstance(before, dict):
        return (
            isinstance(after, dict)
            and before.keys() == after.keys()
            and all(same_state(before[key], after[key]) for key in before)
        )
    return before == after


def noisy_copy(model: nn.Module, share: float = 0.05, seed: int = 1, buffers: bool = True) -> nn.Module:
    """A fully tuned version: every parameter (and running statistic) moved by seeded noise."""
    tuned = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += share * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        for name, value in tuned.named_buffers():
            if buffers and name.rpartition(".")[2] in ("running_mean", "running_var", "e_score_correction_bias"):
                value += share * torch.rand(value.shape, generator=generator, dtype=value.dtype)
    return tuned


def pair(name: str, share: float = 0.05) -> tuple[nn.Module, nn.Module]:
    """A tiny base model and a fully tuned version of it."""
    base = build(name)
    return base, noisy_copy(base, share)


def finest(name: str) -> str:
    """The granularity with most layers: convolutions in convolutional networks."""
    return "conv" if "resnet" in name else "linear"


def with_lora(model: nn.Module, rank: int = 2, seed: int = 3, **settings: object) -> nn.Module:
    """The model, edited in place, with seeded random LoRA on every layer of the finest sort, fused experts included."""
    from peft import LoraConfig, get_peft_model

    from keylayers.layers.naming import named_layers

    granularity = "conv" if not any(isinstance(m, nn.Embedding) for m in model.modules()) else "linear"
    if any(type(m).__name__.startswith("ViT") for m in model.modules()):
        granularity = "linear"
    names = [layer.name for layer in named_layers(model, granularity)]
    modules = dict(model.named_modules())
    fused = [name for name in names if name not in modules]
    # Where experts are fused, peft takes any module of these names for an expert's and passes it over.
    passed_over = [name for name in names if fused and name.endswith((".gate_proj", ".up_proj", ".down_proj"))]
    fused += [f"{name}.weight" for name in passed_over if name in modules]
    conv1d = any(type(modules.get(name)).__name__ == "Conv1D" for name in names)
    config = LoraConfig(
        **{
            "r": rank,
            "lora_alpha": 3,
            "lora_dropout": 0.0,
            "target_modules": [name for name in names if name in modules and name not in passed_over],
            "target_parameters": fused or None,
            "fan_in_fan_out": conv1d,
            **settings,
        }
    )
    adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()
