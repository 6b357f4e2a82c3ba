"""Undoing what adapter libraries do to a network: they exchange its modules and flags in place."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from keylayers.layers.structure import unwrap


@contextmanager
def restored(model: nn.Module, *, only_after_errors: bool = False) -> Iterator[None]:
    """Puts back a network's modules, training flags and `requires_grad` at the end, whatever peft did to them."""
    network = unwrap(model)
    tree = [(module, dict(module._modules), module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    config = vars(network).get("peft_config")
    try:
        yield
    except BaseException:
        only_after_errors = False
        raise
    finally:
        if not only_after_errors:
            for module, children, training in tree:
                module._modules.clear()
                module._modules.update(children)
                module.training = training
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            if config is None:
                vars(network).pop("peft_config", None)  # else a next adapter is taken for a second one
