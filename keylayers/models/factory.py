"""Models that are a function's return value, `package.module:factory`, with weights from a safetensors file."""

import importlib
import os
import sys

from torch import nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.tensors import tensors_on_disk


def from_factory(source: str, weights: str | None = None, allow_pickle: bool = False) -> nn.Module:
    """What the named function returns, with the weights in it, in eval mode; modules of the working folder count.

    Raises:
        UnknownName: for a function that is not in the module.
        BadInput: for a module that cannot be imported, a function that returns no network, or weights that do not fit.
    """
    module_name, _, function = source.partition(":")
    if os.getcwd() not in sys.path:  # `python -m` has it, an installed command has not
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError) as error:  # the last: `.name`, which is relative to nothing
        raise BadInput(
            f"cannot import {module_name!r} of model {source!r}: {error}. Expected package.module:factory."
        ) from error
    if not hasattr(module, function):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UnknownName(f"factory in {module_name}", function, known)
    try:
        model = getattr(module, function)()
    except TypeError as error:
        raise BadInput(f"{source} cannot be called without arguments ({error}); give a factory that can.") from error
    if not isinstance(model, nn.Module):
        raise BadInput(
            f"{source} returned {type(model).__name__}; a factory takes no arguments and returns a torch module."
        )
    if weights is not None:
        put_weights(model, source, weights, allow_pickle)
    return model.eval()


def put_weights(model: nn.Module, source: str, weights: str, allow_pickle: bool = False) -> None:
    """Puts a file's weights into the network that `source` names.

    Raises:
        BadInput: for a file that is missing or cannot be read, or weights that do not fit.
    """
    source_of = tensors_on_disk(weights, allow_pickle=allow_pickle)
    stored, wanted = {name: read() for name, read in source_of.items()}, model.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # absent from old checkpoints
    missing, extra = sorted(wanted.keys() - stored.keys() - counters), sorted(stored.keys() - wanted.keys())
    wrong = [name for name in wanted if name in stored and stored[name].shape != wanted[name].shape]
    if missing or extra or wrong:
        lists = {"missing": missing, "unknown": extra, "of another shape": wrong}
        counted = "; ".join(f"{len(n)} tensors {what} ({', '.join(n[:3])})" for what, n in lists.items() if n)
        raise BadInput(f"{weights} does not fit {source}: {counted}. Give the weights of this very architecture.")
    model.load_state_dict(wanted | stored)
