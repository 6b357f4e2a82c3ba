"""Skip connections as layers, found by how a network computes, and scaled by a factor for a while."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.additions import Addition, Tracer, adding, tracing
from keylayers.layers.blocks import find_blocks, scalars
from keylayers.layers.intervene import replaced
from keylayers.layers.layer import Layer
from keylayers.layers.ordering import example_inputs, shape_pass
from keylayers.layers.structure import adapters_off, inner_module, module_named, parameters_of, uncompiled, unwrap, walk
from keylayers.layers.tensor_swap import frozen

GUESSED_SIZE = 64
"""Height and width of the image that is tried on a convolutional network which says nothing of its input."""


def skip_layers(model: nn.Module, example: Mapping[str, Tensor] | None = None) -> tuple[Layer, ...]:
    """The skip connections in forward order: `BLOCK.shortcut` where a module makes it, else `BLOCK.skip`.

    Where a block has several they are numbered (`skip.0`, `skip.1`); the kind is `skip` or that. Only a projection has
    parameters.

    Raises:
        BadInput: for a network without a skip, or one whose forward pass cannot be followed.
    """
    return tuple(_found(model, example))


def example_for(model: nn.Module, given: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Inputs to find the skips with: none where they are found without, else the given ones.

    Raises:
        BadInput: for a network without a skip, or where `given` does not run either.
    """
    try:
        skip_layers(model)
    except BadInput:
        skip_layers(model, given)
        return given
    return None


@contextmanager
def scaled_skips(
    model: nn.Module,
    skips: Iterable[Layer | str],
    by: float | Tensor,
    *,
    example: Mapping[str, Tensor] | None = None,
) -> Iterator[nn.Module]:
    """The model with skip connections multiplied: `f(x) + by * x`. 1 changes nothing, bit for bit; 0 removes them.

    Raises:
        UnknownName: for a skip that the network does not have.
        BadInput: at the forward pass, if it does not reach an addition it should scale.
    """
    found = {layer.name: place for layer, place in _found(model, example).items()}
    names = list(dict.fromkeys(skip if isinstance(skip, str) else skip.name for skip in skips))
    for name in names:
        if name not in found:
            raise UnknownName("skip", name, found)
    if isinstance(by, float | int) and by == 1:
        yield model
        return
    modules = {place.module: by for name in names if (place := found[name]).module is not None}
    bare = {name: found[name] for name in names if found[name].module is None}
    with ExitStack() as stack:
        stack.enter_context(uncompiled(model))
        stack.enter_context(replaced(model, {name: lambda before, after: after * by for name in modules}))
        if bare:
            stack.enter_context(_scaling(model, bare, by))
        yield model


@contextmanager
def _scaling(model: nn.Module, bare: Mapping[str, Addition], by: float | Tensor) -> Iterator[None]:
    """Counts the additions in the code of each owner, calls of other modules left out, and scales the right ones."""
    tables: dict[str, dict[int, int]] = {}
    for place in bare.values():
        tables.setdefault(place.owner, {})[place.number] = place.side
    calls: list[list[Any]] = []

    class Scaling(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            operands = adding(func, args) if calls and calls[-1][0] else None
            if operands:
                table, number = calls[-1]
                calls[-1][1] += 1
                if number in table:
                    args = _with_scaled(func, operands, table[number], by) + args[2:]
            return func(*args, **(kwargs or {}))

    def leave(module: nn.Module, args: object, output: object) -> None:
        table, count = calls.pop()
        if output is not None and table and count <= max(table):
            raise BadInput(
                f"{type(module).__name__} made {count} additions, where its skip was number {max(table) + 1} when it "
                "was found: it took another path. Give `example` inputs like those it is run on."
            )

    owners = {inner_module(module_named(model, name) if name else unwrap(model)): name for name in tables}
    with ExitStack() as stack:
        for part in dict.fromkeys(part for owner in owners for part in owner.modules()):
            own = tables[owners[part]] if part in owners else {}

            def enter(module: nn.Module, args: object, own: dict[int, int] = own) -> None:
                calls.append([own, 0])

            stack.callback(part.register_forward_pre_hook(enter).remove)
            stack.callback(part.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(Scaling())
        yield


def _with_scaled(func: Any, operands: tuple[Tensor, Tensor], side: int, by: float | Tensor) -> tuple[Tensor, Tensor]:
    first, second = operands
    if side == 1:
        return first, second * by
    if func.__name__ in ("add_", "__iadd__"):
        return first.mul_(by), second  # its result must be the same tensor
    return first * by, second


_KNOWN: "WeakKeyDictionary[nn.Module, tuple[object, dict[Layer, Addition]]]" = WeakKeyDictionary()


def _found(model: nn.Module, example: Mapping[str, Tensor] | None) -> dict[Layer, Addition]:
    root = inner_module(unwrap(model))
    shapes = None if example is None else tuple((key, tuple(value.shape)) for key, value in example.items())
    structure = (shapes, tuple((node.name, type(node.inner)) for node in walk(model)))
    known = _KNOWN.get(root)
    if known is None or known[0] != structure:
        _KNOWN[root] = known = structure, _as_layers(model, _additions(model, root, example))
    return known[1]


def _additions(model: nn.Module, root: nn.Module, example: Mapping[str, Tensor] | None) -> list[Addition]:
    example = example or example_inputs(root) or _guessed(root)
    if example is None:
        raise BadInput(
            f"to find the skips of {type(root).__name__} it must run once, and nothing says what it takes; give "
            "`example` inputs by name."
        )
    blocks = find_blocks(model)
    with frozen(root):
        try:
            with shape_pass(model, example) as (network, tensors, run):
                tracer = Tracer(tensors)
                with tracing(network, tracer, blocks):
                    run()
        except Exception as error:  # whatever needs more than shapes: sparse dispatch, checks of values
            tracer = _followed_for_real(model, root, example, blocks, error)
    if not tracer.found:
        raise BadInput(
            f"{type(root).__name__} has no skip connection: nowhere does it add what entered to what weights made of "
            "it. Choose another granularity."
        )
    return tracer.found


def _followed_for_real(
    model: nn.Module, root: nn.Module, example: Mapping[str, Tensor], blocks: Iterable[str], error: Exception
) -> Tracer:
    own = parameters_of(model)
    device = next((value.device for value in own.values()), torch.device("cpu"))
    shapes = [tuple(value.shape) for value in example.values()]
    inputs = {
        key: torch.zeros_like(value, device=device) if value.is_meta else value.to(device)
        for key, value in example.items()
    }
    tracer = Tracer(own)
    try:
        if device.type == "meta":
            raise error
        generators = torch.random.fork_rng(range(torch.cuda.device_count()))
        with generators, uncompiled(model), adapters_off(model), tracing(model, tracer, blocks):
            root(**inputs)
    except Exception as second:
        raise BadInput(
            f"the skips of {type(root).__name__} cannot be found: it does not run on {', '.join(example)} of shape "
            f"{', '.join(map(str, shapes))} ({str(second).partition(chr(10))[0]}); give `example` inputs by name."
        ) from second
    return tracer


def _guessed(root: nn.Module) -> dict[str, Tensor] | None:
    """An image for a network of convolutions, by the name of its first argument; None for other networks."""
    first = next((module for module in root.modules() if isinstance(module, nn.Conv2d | nn.Linear)), None)
    names = list(inspect.signature(root.forward).parameters)
    if not isinstance(first, nn.Conv2d) or not names:
        return None
    return {names[0]: torch.zeros(1, first.in_channels, GUESSED_SIZE, GUESSED_SIZE, device="meta")}


def _as_layers(model: nn.Module, additions: Iterable[Addition]) -> dict[Layer, Addition]:
    blocks, own = find_blocks(model), parameters_of(model)
    unique = list({place.module or (place.owner, place.number): place for place in additions}.values())
    by_block: dict[str | None, list[Addition]] = {}
    for place in unique:
        by_block.setdefault(_block(place.owner, blocks), []).append(place)
    layers = {}
    for place in unique:
        block = _block(place.owner, blocks)
        others = by_block[block]
        number = f".{others.index(place)}" if len(others) > 1 else ""
        name = place.module or f"{block or ''}.skip{number}".removeprefix(".")
        names = tuple(one for one in own if place.module and one.startswith(f"{place.module}."))
        size = sum(scalars(own[one]) for one in names)
        index = None if block is None else blocks.index(block)
        layers[Layer(name, index, f"skip{number}" if block else name, names, size)] = place
    return layers


def _block(owner: str, blocks: tuple[str, ...]) -> str | None:
    return next((block for block in blocks if owner == block or owner.startswith(f"{block}.")), None)
