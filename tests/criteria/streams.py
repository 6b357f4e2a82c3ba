"""Residual streams that the tests write by hand: what each block does to the hidden states is known."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from keylayers.criteria.protocol import Evidence
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers

Doing = Callable[[Tensor], Tensor]


class Planted(nn.Module):
    """A block that applies a function; it owns two matrices, as blocks do."""

    def __init__(self, doing: Doing, width: int) -> None:
        super().__init__()
        self.doing, self.inner, self.outer = doing, nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.doing(hidden_states)


class Stream(nn.Module):
    """Blocks in turn on given hidden states."""

    def __init__(self, doings: Sequence[Doing], width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Planted(doing, width) for doing in doings)

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            inputs_embeds = layer(inputs_embeds)
        return inputs_embeds


def run(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    """Feeds a batch as a loss does."""
    return model(**{key: value for key, value in batch.items() if key != "labels"}).sum(), 1


def stream(
    doings: Sequence[Doing], states: Tensor, size: int = 4, **more: Tensor
) -> tuple[Evidence, tuple[Layer, ...]]:
    """Evidence of a stream over hidden states (records, positions, width), in batches of `size` records."""
    model = Stream(doings, states.shape[-1])
    data = [{"inputs_embeds": states[at : at + size]} for at in range(0, len(states), size)]
    return Evidence(model=model, data=data, loss=run, granularity="block"), named_layers(model, "block")


def states(records: int = 12, positions: int = 5, width: int = 8, seed: int = 0) -> Tensor:
    """Random hidden states, float64, away from the origin."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(records, positions, width, generator=generator, dtype=torch.float64) + 0.5


def rotation(width: int = 8, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]


def mixing(amount: float, width: int = 8, seed: int = 2) -> Doing:
    """Adds a bent function of the hidden states."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return lambda hidden: hidden + amount * torch.tanh(hidden @ weight.to(hidden))


def same(hidden: Tensor) -> Tensor:
    """The identity."""
    return hidden


def passed(doings: Sequence[Doing], hidden: Tensor) -> list[np.ndarray]:
    """Hidden states before the first block and after every block, in float64."""
    found = [hidden]
    for doing in doings:
        found.append(doing(found[-1]))
    return [one.numpy() for one in found]
