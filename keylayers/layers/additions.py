"""Skip connections found as a network runs: additions of what entered to what weights made of it.

Every call into torch is seen, so that it does not matter how a network writes its residual: `x + f(x)`, `out += x`,
`self.shortcut(x) + out`, in a block's own code or in a part of it.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from keylayers.layers.structure import walk

ADDING = {"add", "add_", "__add__", "__radd__", "__iadd__"}
SHORTCUTS = {"shortcut", "downsample", "skip", "skip_connection", "proj_shortcut", "identity"}
"""Names of modules that skip, where their output is added to what went through weights."""


@dataclass(frozen=True)
class Addition:
    """Where a skip is added."""

    owner: str
    """Module whose own code adds."""
    number: int
    """Which of the additions of two tensors in that code, from 0."""
    side: int
    """0 if the skip is the first operand, 1 if it is the second."""
    module: str | None
    """The shortcut module that it comes out of; None for a bare tensor."""


@dataclass
class _Call:
    owner: str
    scope: int
    """Nodes made before this one are inputs: of the block, or outside the blocks of the network."""
    additions: int = 0


class Tracer(TorchFunctionMode):
    """Finds the additions of a forward pass that runs inside it; `tracing` hooks its modules.

    Memory: every tensor that the pass makes, which on the meta device is none.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.found: list[Addition] = []
        self._node: dict[int, int] = {}
        self._parents: list[tuple[int, ...]] = []
        self._weighted: list[bool] = []
        self._alive: list[Tensor] = list(tensors.values())  # an id is a tensor's only while it lives
        self._weights = {id(one) for one in self._alive if sum(size > 1 for size in one.shape) > 1}
        self._constants = {id(one) for one in self._alive}
        self._calls: list[_Call] = [_Call("", 0)]
        self._shortcuts: dict[tuple[str, int], tuple[str, int]] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        operands = adding(func, args)
        skip = self._skip(*operands) if operands else None
        given = list(_tensors((*args, *(kwargs or {}).values())))
        parents = tuple(dict.fromkeys(self._of(one) for one in given if id(one) not in self._constants))
        weights = any(id(one) in self._weights for one in given)
        out = func(*args, **(kwargs or {}))
        for made in _tensors((out,)):
            self._alive.append(made)
            if parents or not given:
                self._add(made, parents, weights)
            else:
                self._constants.add(id(made))
                if weights:
                    self._weights.add(id(made))
        if operands:
            call = self._calls[-1]
            if skip is not None:
                self.found.append(Addition(call.owner, call.additions, *skip))
            call.additions += 1
        return out

    def _add(self, made: Tensor, parents: tuple[int, ...], weighted: bool) -> int:
        self._node[id(made)] = len(self._parents)
        self._parents.append(parents)
        self._weighted.append(weighted)
        return len(self._parents) - 1

    def _of(self, tensor: Tensor) -> int:
        if id(tensor) not in self._node:
            self._alive.append(tensor)
            self._add(tensor, (), False)
        return self._node[id(tensor)]

    def entered(self, name: str, args: tuple, kwargs: dict, is_block: bool) -> None:
        """A module begins."""
        for one in _tensors((*args, *kwargs.values())):
            if id(one) not in self._constants:
                self._of(one)
        scope = len(self._parents) if is_block else self._calls[-1].scope
        self._calls.append(_Call(name, scope))

    def left(self, name: str, args: tuple, output: object) -> None:
        """A module ends."""
        self._calls.pop()
        owner, _, own = name.rpartition(".")
        if own in SHORTCUTS and isinstance(output, Tensor) and args and isinstance(args[0], Tensor):
            self._shortcuts[owner, self._of(output)] = (name, self._of(args[0]))

    def _skip(self, first: Tensor, second: Tensor) -> tuple[int, str | None] | None:
        """Which operand is a skip, and out of which module; None if neither is."""
        if first.shape != second.shape or {id(first), id(second)} & self._constants:
            return None
        call, nodes = self._calls[-1], (self._of(first), self._of(second))
        for side in (0, 1):
            skip, other = nodes[side], nodes[1 - side]
            plain = self._weightless(skip, call.scope)
            below = self._through_weights(other, call.scope)
            for node in plain:
                module, entering = self._shortcuts.get((call.owner, node), (None, None))
                if module is not None and entering in below:
                    return side, module
            if not plain.isdisjoint(below):
                return side, None
        return None

    def _weightless(self, start: int, scope: int) -> set[int]:
        """The node and what it was made of without any weight, back to the inputs of the scope."""
        seen, left = {start}, [start]
        while left:
            node = left.pop()
            if node >= scope and not self._weighted[node]:
                fresh = [parent for parent in self._parents[node] if parent not in seen]
                seen.update(fresh)
                left += fresh
        return seen

    def _through_weights(self, start: int, scope: int) -> set[int]:
        """What the node was made of with a weight on the way."""
        seen, left = {(start, False)}, [(start, False)]
        while left:
            node, passed = left.pop()
            if node >= scope:
                now = passed or self._weighted[node]
                fresh = [(parent, now) for parent in self._parents[node] if (parent, now) not in seen]
                seen.update(fresh)
                left += fresh
        return {node for node, passed in seen if passed}


def adding(func: Any, args: tuple) -> tuple[Tensor, Tensor] | None:
    """The operands of an addition of two tensors; None for another call."""
    if getattr(func, "__name__", "") in ADDING and len(args) >= 2:
        first, second = args[:2]
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            return first, second
    return None


def tracing(network: nn.Module, tracer: Tracer, blocks: Iterable[str]) -> ExitStack:
    """Tells a tracer of every module's calls until the stack is closed."""
    stack, blocks = ExitStack(), set(blocks)
    for node in walk(network):

        def before(module: nn.Module, args: tuple, kwargs: dict, name: str = node.name) -> None:
            tracer.entered(name, args, kwargs, name in blocks)

        def after(module: nn.Module, args: tuple, output: object, name: str = node.name) -> None:
            tracer.left(name, args, output)

        stack.callback(node.inner.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(node.inner.register_forward_hook(after).remove)
    stack.enter_context(torch.no_grad())
    stack.enter_context(tracer)
    return stack


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())
