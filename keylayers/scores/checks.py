"""The checks that scores and selections share: layers, names, blocks, arrays; each error says what differs."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.axes import LayerMask
from keylayers.errors import BadScores, BadSelection
from keylayers.layers.layer import Layer, layer_named


def checked_layers(layers: Sequence[Layer], error: type[Exception]) -> tuple[Layer, ...]:
    """The layers as a tuple. Raises `error` unless there is at least one and each is a Layer with a name of its own."""
    found = tuple(layers)
    if not found:
        raise error("there are no layers; `keylayers layers MODEL` lists what a model has at each granularity")
    for one in found:
        if not isinstance(one, Layer):
            raise error(f"layers must be Layer records, got {one!r}; `named_layers(model, granularity)` makes them")
    names = [layer.name for layer in found]
    if len(set(names)) != len(names):
        repeated = list(dict.fromkeys(name for name in names if names.count(name) > 1))
        raise error(f"each layer may appear once, but these are repeated: {shown_names(repeated)}")
    return found


def require_names(layers: Sequence[Layer], names: Iterable[str]) -> None:
    """Raises UnknownName, with the nearest names, for the first that no layer has."""
    known = {layer.name for layer in layers}
    for name in names:
        if name not in known:
            layer_named(layers, name)


def finite_array(values: Any, layers: Sequence[Layer], what: str, axes: tuple[str, ...]) -> Float[np.ndarray, "..."]:
    """A read-only float64 copy. Raises BadScores for another shape, or naming the first layer that is not finite."""
    remedy = "give a list or array of real numbers (of a torch tensor: tensor.detach().double().cpu().numpy())"
    try:
        raw = np.asarray(values)
        if np.iscomplexobj(raw):
            if np.any(raw.imag != 0):
                raise BadScores(f"{what} are complex; {remedy}")
            raw = raw.real
        array = np.array(raw, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise BadScores(f"{what} are not numbers ({error}); {remedy}") from error
    if array.ndim != len(axes) or array.shape[-1] != len(layers) or array.shape[0] == 0:
        raise BadScores(
            f"{what} have shape {array.shape}, but ({', '.join(axes)}) with {len(layers)} layers was expected; "
            "score exactly the layers that are listed, in the same order"
        )
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0]
        layer = layers[int(bad[-1])].name
        raise BadScores(
            f"{what}: layer {layer!r} has the score {array[tuple(bad)]}, which ranks nothing; "
            "find out why the criterion gave no finite number there, or leave that layer out"
        )
    array.setflags(write=False)
    return array


def same_array(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether both are absent, or equal in shape and every entry."""
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def shown_names(names: Sequence[str], most: int = 4) -> str:
    """The first few names, for an error text."""
    rest = f", ... ({len(names)} in all)" if len(names) > most else ""
    return (", ".join(names[:most]) + rest) or "none"


def in_blocks(layers: Sequence[Layer], numbers: Iterable[int]) -> LayerMask:
    """Mask of the layers in these blocks. Raises BadSelection for a block that has no layer here."""
    wanted, present = set(numbers), {layer.block for layer in layers if layer.block is not None}
    unknown = sorted(wanted - present)
    if unknown:
        have = f"its layers lie in blocks {ranges(present)}" if present else "none of its layers lies in a block"
        raise BadSelection(f"block {', '.join(map(str, unknown))} is not in this model: {have}")
    return np.array([layer.block in wanted for layer in layers], dtype=np.bool_)


def ranges(numbers: Iterable[int]) -> str:
    """Whole numbers as text with runs joined: 0..3, 7."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}..{high}" for low, high in runs)


def same_layers(a: Sequence[Layer], b: Sequence[Layer], what: str, error: type[Exception]) -> None:
    """Raises `error`, naming what differs, unless both are the same layers by name, in the same order."""
    first, second = [layer.name for layer in a], [layer.name for layer in b]
    if first == second:
        return
    only_a, only_b = sorted(set(first) - set(second)), sorted(set(second) - set(first))
    if only_a or only_b:
        other = "; a ranking of another model: `keylayers transfer SCORES --to MODEL` maps it first"
        raise error(
            f"{what} are over different layers ({len(first)} and {len(second)}): only the first has "
            f"{shown_names(only_a)}; only the second has {shown_names(only_b)}. "
            f"Make both from one model at one granularity{other if error is BadScores else ''}"
        )
    at = next(i for i, (left, right) in enumerate(zip(first, second, strict=True)) if left != right)
    raise error(
        f"{what} list the same layers in different orders: position {at} is {first[at]!r} and {second[at]!r}. "
        "Layers stand in forward order; make both from one model with `named_layers`"
    )


def bool_mask(mask: Any, count: int) -> LayerMask:
    """A read-only copy. Raises BadSelection unless it is one bool per layer."""
    array = np.array(mask)
    if array.dtype != np.bool_ or array.shape != (count,):
        raise BadSelection(
            f"a mask holds one true or false for each of the {count} layers, got {array.dtype} of shape {array.shape}"
        )
    array.setflags(write=False)
    return array
