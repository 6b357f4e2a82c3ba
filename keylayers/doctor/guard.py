"""Proof that the doctor left a model as it was: weights, modules, hooks, flags, gradients, random numbers."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn

from keylayers.actions.finetuning import is_quantised
from keylayers.actions.fingerprinting import fingerprints
from keylayers.errors import BadInput
from keylayers.layers.adapter_undo import restored
from keylayers.layers.layer import Layer
from keylayers.layers.structure import unwrap
from keylayers.training.adapters import LoraSettings, adapted_names, attach_lora

HOOKS = tuple(key for key in vars(nn.Module()) if key.endswith("_hooks"))


@dataclass(frozen=True)
class Found:
    """A model's state at one moment; two are compared part by part."""

    weights: dict[str, str]
    """SHA-256 of every parameter and lasting buffer, or how often each was written to."""
    modules: dict[str, tuple[int, str]]
    """Name -> which object, of which class."""
    hooks: dict[str, tuple[int, ...]]
    """Name -> identities of all hooks on it."""
    training: dict[str, bool]
    gradients: dict[str, tuple[int, bool, int]]
    """Parameter -> which object, whether it asks for a gradient, which gradient it holds."""
    attributes: dict[str, frozenset[str]]

    @classmethod
    def of(cls, model: nn.Module, hashed: bool = True) -> "Found":
        """The state now; reads every weight once, unless their write counters must do."""
        if is_quantised(model):
            model.state_dict()  # some CPUs repack weights to evaluate (bitsandbytes); this brings back the layout
        modules = dict(model.named_modules(remove_duplicate=False))
        parameters = dict(model.named_parameters(remove_duplicate=False))
        real = not any(value.is_meta for value in parameters.values())
        return cls(
            fingerprints(model) if real and hashed else {n: f"written {p._version}" for n, p in parameters.items()},
            {name: (id(one), type(one).__name__) for name, one in modules.items()},
            {name: tuple(id(hook) for kind in HOOKS for hook in _hooks(one, kind)) for name, one in modules.items()},
            {name: one.training for name, one in modules.items()},
            {name: (id(one), one.requires_grad, id(one.grad)) for name, one in parameters.items()},
            {name: frozenset(vars(one)) for name, one in modules.items()},
        )

    def differences(self, later: "Found") -> list[str]:
        """What changed, as `part of name`."""
        changed = []
        for part in (item.name for item in fields(self)):
            before, after = getattr(self, part), getattr(later, part)
            changed += [
                f"{part} of {name or 'the model'}"
                for name in {**before, **after}
                if before.get(name) != after.get(name)
            ]
        return changed


def _hooks(module: nn.Module, kind: str) -> Iterator[Any]:
    table: Any = getattr(module, kind, None)
    yield from table.values() if hasattr(table, "values") else ()


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Puts the generators of torch, numpy and Python back where they were."""
    plain, numbers = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(numbers)


@contextmanager
def attached(model: nn.Module, layers: Sequence[Layer], settings: LoraSettings) -> Iterator[nn.Module]:
    """The model with fresh LoRA on these layers, taken off again at the end. Raises BadInput if it carries some."""
    if present := adapted_names(model):  # asked first, for what is undone below must be of our own making
        raise BadInput(f"the model carries LoRA already, on {len(present)} layers; merge or unload it first.")
    network = unwrap(model)
    with restored(network):
        yield attach_lora(network, layers, settings, seed=0)


def foreign_hooks(model: nn.Module) -> dict[str, list[str]]:
    """Module name -> the forward and backward hooks that sit on it, by their functions' names."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for kind in HOOKS:
            if "forward" in kind or "backward" in kind:
                found.setdefault(name, []).extend(map(_function_name, _hooks(module, kind)))
    return {name: hooks for name, hooks in found.items() if hooks}


def _function_name(hook: Callable[..., Any]) -> str:
    named: Any = getattr(hook, "func", hook)
    owner = getattr(named, "__module__", "")
    return f"{owner}.{getattr(named, '__qualname__', type(named).__qualname__)}".removeprefix(".")
