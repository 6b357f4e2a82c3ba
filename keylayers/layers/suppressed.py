"""A network some of whose skip connections are turned down for good, in every forward pass."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from keylayers.layers.layer import Layer
from keylayers.layers.skips import example_for, scaled_skips


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
        self._example: tuple[Mapping[str, Tensor] | None] | None = None  # None: not known before a first forward pass
        self.train(module.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns with its skips turned down."""
        if self._example is None:
            self._example = (example_for(self.module, self._first_record(args, kwargs)),)
        with scaled_skips(self.module, self.skips, self.factor, example=self._example[0]):
            return self.module(*args, **kwargs)

    @property
    def innermost(self) -> nn.Module:
        """The network itself, without any such wrapper."""
        return self.module.innermost if isinstance(self.module, Suppressed) else self.module

    @property
    def factors(self) -> dict[str, float]:
        """Skip -> what it is multiplied by, wrappers inside included."""
        found = self.module.factors if isinstance(self.module, Suppressed) else {}
        return found | {name: found.get(name, 1.0) * self.factor for name in self.skips}

    def _first_record(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Of a call's tensors, by the names of the network's arguments."""
        bound = inspect.signature(self.module.forward).bind_partial(*args, **kwargs).arguments
        return {k: value[:1].detach().clone() for k, value in bound.items() if isinstance(value, Tensor) and value.ndim}
