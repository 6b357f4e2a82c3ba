"""What a checkpoint stores, by name, for tools that name single tensors."""

from torch import nn

from keylayers.exports.target import CannotExpress
from keylayers.layers.structure import first_names, parameters_of
from keylayers.scores.selection import Selection


def stored_tensors(model: nn.Module) -> set[str]:
    """Names of the parameters and lasting buffers in a checkpoint; a tied tensor once, under its first name."""
    return {name for name, first in first_names(model).items() if name == first}


def stored_parameters(model: nn.Module) -> set[str]:
    """Names that `named_parameters()` of the unwrapped model gives."""
    return stored_tensors(model) & parameters_of(model).keys()


def require_whole(selection: Selection, tool: str) -> None:
    """Raises CannotExpress for a layer that is a slice of a tensor (a single expert), and so has no name of its own."""
    for layer in selection.chosen:
        if sliced := next((name for name in layer.parameters if "[" in name), None):
            raise CannotExpress(f"{tool} names whole tensors, and {sliced} is a slice of one.")
