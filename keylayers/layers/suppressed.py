"""A network some of whose skip connections are turned down for good, in every forward pass."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from keylayers.layers.layer import Layer
from keylayers.layers.skips import scaled_skips


class Suppressed(nn.Module):
    """A wrapper around a network: f(x) + factor * x at the named skips, 1 changing no bit.

    Names, layers and parameters are those of the network inside, as with data-parallel wrappers, and it can be trained,
    scored, wrapped again and copied. What is saved of it is the network: identities have no weight that could hold the
    factor. To have it back, wrap the loaded network with the same names and factor. The network itself (`module`) is
    untouched and computes as before.

    Raises:
        UnknownName: at a forward pass, for a skip that the network does not have.
    """

    def __init__(self, module: nn.Module, skips: Iterable[Layer | str], factor: float = 0.0) -> None:
        super().__init__()
        self.module = module
        self.skips = tuple(skip if isinstance(skip, str) else skip.name for skip in skips)
        self.factor = factor
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns with its skips turned down."""
        with scaled_skips(self.module, self.skips, self.factor):
            return self.module(*args, **kwargs)
