"""Layers without their contribution: silenced, held at its mean, or given that of another record; undone at the end.

A block contributes its output minus its input, so that without it the residual stream passes through. A sublayer
contributes what its weight matrices make: each of them gets another output, which is right whether the sublayer or its
block adds the residual, for fused queries, keys and values, and for mixtures of experts.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from keylayers.errors import BadInput
from keylayers.layers.blocks import find_blocks
from keylayers.layers.capturing import first_tensor, hidden_input
from keylayers.layers.intervene import replaced
from keylayers.layers.layer import Layer
from keylayers.layers.structure import logical_shape, modules_named, parameters_of, uncompiled, walk
from keylayers.layers.tensor_swap import swapped

Fill = Callable[[str, Tensor], Tensor]
"""(module, its contribution as computed) -> what stands in for it, of the same shape."""


@dataclass(frozen=True)
class Places:
    """Where a layer's contribution is made."""

    block: str | None = None
    """The layer is this whole block."""
    modules: tuple[str, ...] = ()
    """Modules that multiply by a weight matrix."""
    parameters: tuple[str, ...] = ()
    """Of a layer that is no such module (a fused expert tensor, an expert in it, a router): what is set to zero."""


def places_of(model: nn.Module, layers: Iterable[Layer]) -> list[Places]:
    """Where each layer's contribution is made, found by structure."""
    nodes, blocks = {node.name: node.inner for node in walk(model)}, frozenset(find_blocks(model))
    return [_places(nodes, blocks, layer) for layer in layers]


def _places(nodes: Mapping[str, nn.Module], blocks: frozenset[str], layer: Layer) -> Places:
    if layer.name in blocks:
        return Places(block=layer.name)
    first, *rest = layer.name.split("+")
    names = [first, *(f"{first.rpartition('.')[0]}.{one}" for one in rest)]
    inside = [name for name in nodes if any(name == one or name.startswith(f"{one}.") for one in names)]
    if inside == names and not any(_plain(nodes[name]) for name in names):
        return Places(parameters=layer.parameters)
    weighing = tuple(name for name in inside if _weighs(nodes[name]))
    return Places(modules=weighing) if weighing else Places(parameters=layer.parameters)


def _weighs(module: nn.Module) -> bool:
    own = module._parameters.values()
    return not isinstance(module, nn.Embedding) and any(one is not None and len(logical_shape(one)) > 1 for one in own)


def _plain(module: nn.Module) -> bool:
    """Whether it returns only a product with its weight; a router returns choices too."""
    return isinstance(module, nn.Linear | _ConvNd) or type(module).__name__ == "Conv1D"


@contextmanager
def ablated(model: nn.Module, layers: Iterable[Layer], fill: Fill | None = None) -> Iterator[nn.Module]:
    """The model with the contributions of layers replaced; without `fill`, by zero: a block is then the identity.

    Everything is still computed, so caches of keys and values stay aligned while text is generated.

    Raises:
        BadInput: for a block whose output has another shape than its input, or if a layer that is no module of its own
            should be filled with anything but zero.
    """
    changes: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    silent: dict[str, Tensor] = {}
    own, layers = parameters_of(model), list(layers)
    for layer, where in zip(layers, places_of(model, layers), strict=True):
        if where.block is not None:
            changes[where.block] = _block_change(where.block, fill)
        for name in where.modules:
            changes[name] = _module_change(name, fill)
        if where.parameters and fill is not None:
            raise BadInput(
                f"layer {layer.name!r} is no module of its own, so its output cannot be replaced by a mean or by "
                "another record's",
                "give `settings.replace=zero`",
                "take blocks or sublayers (`granularity=block`)",
            )
        for parameter in where.parameters:
            name, bracket, index = parameter.partition("[")
            zeros = silent.get(name, own[name].detach())
            silent[name] = _without(zeros, int(index.removesuffix("]"))) if bracket else torch.zeros_like(zeros)
    with swapped(model, silent), replaced(model, changes):
        yield model


def _without(fused: Tensor, index: int) -> Tensor:
    kept = fused.clone()
    kept[index] = 0
    return kept


def _block_change(name: str, fill: Fill | None) -> Callable[[Tensor, Tensor], Tensor]:
    def change(before: Tensor, after: Tensor) -> Tensor:
        if fill is None or before.shape != after.shape:
            return before
        return before + fill(name, after - before)

    return change


def _module_change(name: str, fill: Fill | None) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda before, after: torch.zeros_like(after) if fill is None else fill(name, after)


@contextmanager
def contributions(model: nn.Module, layers: Iterable[Layer], see: Callable[[str, Tensor], None]) -> Iterator[nn.Module]:
    """Calls `see` with every contribution of the layers as the model runs, by the name of the block or module."""
    places = places_of(model, layers)
    blocks = {where.block for where in places if where.block is not None}

    def hook_for(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            after = first_tensor(output).detach()
            before = hidden_input(args, kwargs).detach() if name in blocks else None
            see(name, after if before is None or before.shape != after.shape else after - before)

        return hook

    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        names = list(dict.fromkeys([*blocks, *(name for where in places for name in where.modules)]))
        for name, module in zip(names, modules_named(model, names), strict=True):
            stack.callback(module.register_forward_hook(hook_for(name), with_kwargs=True).remove)
        yield model


class Means(Mapping[str, Tensor]):
    """Mean contribution of each module over tokens; a `Fill`. Memory: one vector per module, float64."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self.kept: Tensor | None = None
        """Which places of the present batch are tokens, (rows, places); None: all."""

    def see(self, name: str, value: Tensor) -> None:
        """Adds a batch's contribution of a module: (..., features), or (rows, channels, height, width)."""
        channels_last = value.movedim(1, -1) if value.ndim == 4 else value
        flat = channels_last.reshape(-1, channels_last.shape[-1])
        if self.kept is not None and value.ndim < 4 and len(flat) == self.kept.numel():
            flat = flat[self.kept.reshape(-1).to(flat.device)]
        total = flat.sum(0, dtype=torch.float64)
        self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._counts[name] = self._counts.get(name, 0) + len(flat)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        mean = self[name].to(value)
        return (mean.view(-1, 1, 1) if value.ndim == 4 else mean).expand_as(value)

    def __getitem__(self, name: str) -> Tensor:
        return self._sums[name] / max(self._counts[name], 1)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)


class Exchange:
    """Gives every record the contributions of another of its batch, token by token; a `Fill`.

    `see` is shown the contributions of the whole model, `__call__` answers with them. Where the other record is shorter
    it begins anew. All records form one seeded cycle, so none keeps its own. Memory: what it was shown.

    Raises:
        BadInput: for a batch of one record.
    """

    def __init__(self, rows: int, kept: Tensor | None, seed: Sequence[int]) -> None:
        if rows < 2:
            raise BadInput(
                "resampling takes the outputs of another record of the batch, but a batch holds only one",
                "choose a `batch_size` that leaves no batch of one",
                "give `settings.replace=mean`",
            )
        order = torch.from_numpy(np.random.default_rng(list(seed)).permutation(rows))
        self.donors: Int[Tensor, " rows"] = torch.empty_like(order)
        self.donors[order] = order.roll(1)
        self._places = None if kept is None else _repeating(kept.cpu())[self.donors]
        self._given: dict[str, Tensor] = {}

    def see(self, name: str, value: Tensor) -> None:
        """Exchanges a module's contribution between records, and keeps it."""
        rows, grid = len(self.donors), self._places
        flat = grid is not None and value.ndim == 2 and len(value) == grid.numel() and len(value) != rows
        whole = value.view(rows, -1, value.shape[-1]) if flat else value
        if len(whole) != rows:
            raise BadInput(
                f"{name!r} returns {len(value)} vectors for {rows} records, so that they cannot be told apart",
                "give `settings.replace=zero`",
                "take blocks or sublayers (`granularity=block`)",
            )
        donated = whole[self.donors.to(value.device)]
        if grid is not None and whole.ndim == 3 and whole.shape[1] == grid.shape[1]:
            donated = donated.gather(1, grid.to(value.device)[..., None].expand_as(donated))
        self._given[name] = donated.reshape(value.shape)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        return self._given[name].to(value)

    def forget(self) -> None:
        """Frees what was kept."""
        self._given.clear()


def _repeating(kept: Tensor) -> Int[Tensor, "rows places"]:
    """For each row, its tokens' places over and over."""
    rows = []
    for row in kept.bool():
        own = row.nonzero().flatten() if row.any() else torch.arange(len(row))
        rows.append(own[torch.arange(len(row)) % len(own)])
    return torch.stack(rows)
