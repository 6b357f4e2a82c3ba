"""A network at several factors of one skip, with everything computed once that the factor cannot reach."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from keylayers.layers.layer import Layer
from keylayers.layers.prefix import BlockOutputs, resumed
from keylayers.layers.skips import scaled_skips
from keylayers.layers.structure import uncompiled, walk


class SkipFactors:
    """One skip of a model at one factor after another, on the batch of which `outputs` were kept.

    The first pass starts at the skip's block and notes what modules return until the skip is multiplied: the branch
    beside it, too. Later passes start there. They give the bits of plain passes under `scaled_skips`. Memory: what was
    noted, about one block's activations; twice that during the first pass.
    """

    def __init__(
        self, model: nn.Module, skip: Layer, outputs: BlockOutputs, example: Mapping[str, Tensor] | None = None
    ) -> None:
        self._model, self._skip, self._outputs, self._example = model, skip, outputs, example
        self._noted: list[_Note] | None = None

    @contextmanager
    def at(self, factor: float) -> Iterator[nn.Module]:
        """The model with the skip multiplied by it; one forward pass inside."""
        by = torch.tensor(factor, dtype=torch.float64)  # without axes: it takes the type of what it multiplies
        with ExitStack() as stack:
            stack.enter_context(uncompiled(self._model))
            if self._noted is None:
                stack.enter_context(resumed(self._model, self._outputs, self._skip.block or 0))
                notes = stack.enter_context(_noting(self._model, by))
            else:
                notes = self._noted
                stack.enter_context(_answering(self._model, notes))
            stack.enter_context(scaled_skips(self._model, [self._skip], by, example=self._example))
            yield self._model
        self._noted = notes


@dataclass
class _Note:
    """What one call of a module returned."""

    module: nn.Module
    output: Any
    spare: Any
    """A copy, until it is known whether the pass writes into the output; then only if it does."""
    versions: list[int]

    def settle(self) -> None:
        """At the end of the pass: what was not written into needs no copies."""
        if [one._version for one in _tensors(self.output)] == self.versions:
            self.spare = None
        else:
            self.output = None

    def answer(self) -> Any:
        return self.output if self.spare is None else _copied(self.spare)


@contextmanager
def _noting(model: nn.Module, factor: Tensor) -> Iterator[list[_Note]]:
    """Fills with what modules return before the factor is used; what ran inside one of them is left out.

    Notes the forward function alone: hooks that change an output run again when it is answered.
    """
    notes: list[_Note] = []

    class Watching(TorchFunctionMode):
        used = False

        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            self.used = self.used or any(one is factor for one in args)
            return func(*args, **(kwargs or {}))

    watching = Watching()

    def noted(module: nn.Module, own: Callable[..., object]) -> Callable[..., object]:
        def forward(*args: object, **kwargs: object) -> object:
            first = len(notes)
            output = own(*args, **kwargs)
            if not watching.used and _copyable(output):
                versions = [one._version for one in _tensors(output)]
                notes[first:] = [_Note(module, output, _copied(output), versions)]
            return output

        return forward

    with _forwards(model, noted), watching:
        yield notes
    for note in notes:
        note.settle()


@contextmanager
def _answering(model: nn.Module, notes: list[_Note]) -> Iterator[None]:
    """Modules return what was noted of them, call by call, and compute again once that is used up."""
    left: defaultdict[nn.Module, list[_Note]] = defaultdict(list)
    for note in reversed(notes):
        left[note.module].append(note)

    def answered(module: nn.Module, own: Callable[..., object]) -> Callable[..., object]:
        def forward(*args: object, **kwargs: object) -> object:
            return left[module].pop().answer() if left[module] else own(*args, **kwargs)

        return forward

    with _forwards(model, answered, set(left)):
        yield


@contextmanager
def _forwards(
    model: nn.Module,
    wrap: Callable[[nn.Module, Callable[..., object]], Callable[..., object]],
    only: set[nn.Module] | None = None,
) -> Iterator[None]:
    """Other forward functions in all modules below the network itself; put back as they were."""
    modules = [module for module in dict.fromkeys(node.module for node in walk(model) if node.name)]
    with ExitStack() as stack:
        for module in modules:
            if only is None or module in only:
                own = module.__dict__.get("forward")  # of accelerate, torch.compile or `resumed`
                stack.callback(_put_back, module, own)
                module.forward = wrap(module, module.forward)  # type: ignore[method-assign]
        yield


def _put_back(module: nn.Module, own: Any) -> None:
    if own is None:
        del module.forward
    else:
        module.forward = own  # type: ignore[method-assign]


def _copyable(value: object) -> bool:
    if type(value) in (tuple, list):
        return all(map(_copyable, value))  # type: ignore[call-overload]
    return value is None or (isinstance(value, Tensor) and not value.is_inference())


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return value if value is None else type(value)(map(_copied, value))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [tensor for one in value for tensor in _tensors(one)]
