"""One walk through a network under its unwrapped names; the only place that knows wrappers."""

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from keylayers.errors import BadInput, UnknownName

# Attributes under which wrappers keep the module they wrap: peft layers, activation checkpointing, FSDP1,
# torch.compile, peft's modules_to_save.
INNER = (
    "base_layer",
    "_checkpoint_wrapped_module",
    "_fsdp_wrapped_module",
    "_orig_mod",
    "original_module",
    "token_adapter",
)
_INNER = frozenset(INNER)
_WRAPPED = re.compile(rf"(^|\.)({'|'.join(INNER)})(?=\.|$)")
_PREFIX = re.compile(r"^(base_model\.model\.|module\.)+")


class Node(NamedTuple):
    """A module at its unwrapped name; `module` answers calls, `inner` owns the parameters."""

    name: str
    module: nn.Module
    inner: nn.Module


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside peft, data-parallel and compiled wrappers; the model itself where there are none."""
    while True:
        children = dict(model.named_children())
        if callable(getattr(model, "get_base_model", None)):
            model = model.get_base_model()  # type: ignore[operator]
        elif "_orig_mod" in children:
            model = children["_orig_mod"]
        elif list(children) == ["module"] and not any(True for _ in model.parameters(recurse=False)):
            model = children["module"]
        else:
            return model


def canonical_name(name: str) -> str:
    """A module or parameter name (of a checkpoint, of a wrapped model) as the unwrapped model spells it."""
    return _PREFIX.sub("", _WRAPPED.sub("", name).removeprefix("."))


def walk(model: nn.Module) -> Iterator[Node]:
    """Every module once per place, parents first, in ownership order; adapters are passed over."""
    left = [("", unwrap(model))]
    while left:
        name, module = left.pop()
        inner = inner_module(module)
        yield Node(name, module, inner)
        own: dict[nn.Module, str] = {}  # what `named_children` gives, at half its price: every pass asks for this walk
        for child, below in inner._modules.items():
            if below is not None:
                own.setdefault(below, child)
        left += [(f"{name}.{child}" if name else child, below) for below, child in reversed(own.items())]


def inner_module(module: nn.Module) -> nn.Module:
    """The module that owns the parameters, behind any number of wrappers."""
    while not _INNER.isdisjoint(module._modules):
        held = next((module._modules[key] for key in INNER if module._modules.get(key) is not None), None)
        if held is None:
            break
        module = held
    return module


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Unwrapped name -> parameter at every place it is used, so that tied parameters appear under each name."""
    return {
        f"{node.name}.{key}".removeprefix("."): value
        for node in walk(model)
        for key, value in node.inner._parameters.items()
        if value is not None
    }


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """What a checkpoint stores of the model's real numbers: its parameters and, after them, its lasting buffers (the
    running statistics of batch norms); unwrapped names, tied tensors under each of theirs."""
    buffers = {
        f"{node.name}.{key}".removeprefix("."): value
        for node in walk(model)
        for key, value in node.inner._buffers.items()
        if value is not None and value.is_floating_point() and key not in node.inner._non_persistent_buffers_set
    }
    return {**parameters_of(model), **buffers}


def first_names(model: nn.Module) -> dict[str, str]:
    """Name of every stored tensor -> the first name of the same tensor; they differ where weights are tied."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(value), name) for name, value in tensors_of(model).items()}


def module_named(model: nn.Module, name: str) -> nn.Module:
    """The module to hook at that unwrapped name, adapters included.

    Raises:
        UnknownName: with the nearest names, if nothing is called so.
        BadInput: for a layer that is no module of its own (a fused expert tensor, an expert slice, BERT's joined mlp).
    """
    return modules_named(model, [name])[0]


def modules_named(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The modules at those names, from one walk. Raises as `module_named` does."""
    places = {node.name: node.module for node in walk(model)}
    for name in names:
        if name in places:
            continue
        whole = re.split(r"[\[+]", name)[0]
        if whole in places or whole in parameters_of(model):
            owner = whole if whole in places else whole.rpartition(".")[0]
            raise BadInput(
                f"{name!r} is part of what module {owner!r} computes and is not called by itself; name {owner!r}."
            )
        raise UnknownName("layer", name, (place for place in places if place))
    return [places[name] for name in names]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The network without what peft's adapters add, for a while; flags and weights stay as they are."""
    switched = [one for one in model.modules() if vars(one).get("_disable_adapters") is False]
    try:
        for one in switched:
            one._disable_adapters = True  # type: ignore[assignment]
        yield
    finally:
        for one in switched:
            one._disable_adapters = False  # type: ignore[assignment]


def uncompiled(model: nn.Module) -> AbstractContextManager[object]:
    """Runs compiled parts of the model eagerly for a while: compiled code ignores hooks and tensors put in later."""
    compiled = any("_orig_mod" in m._modules or m._compiled_call_impl is not None for m in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def parameter_owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that owns the parameter of that unwrapped name, and its key there. Raises UnknownName."""
    place, _, key = name.rpartition(".")
    for node in walk(model):
        if node.name == place and key in node.inner._parameters:
            return node.inner, key
    raise UnknownName("parameter", name, parameters_of(model))


def is_packed(tensor: Tensor) -> bool:
    """Whether a weight is stored quantised: its numbers are codes, which count only with scales kept elsewhere."""
    return not tensor.is_floating_point() or tensor.element_size() < 2


def logical_shape(parameter: Tensor) -> tuple[int, ...]:
    """Shape before quantisation; 4-bit storage packs two values in a byte and loses it."""
    state = getattr(parameter, "quant_state", None)
    return tuple(state.shape if state is not None else parameter.shape)
