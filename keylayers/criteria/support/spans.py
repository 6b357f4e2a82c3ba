"""Windows: layers of one kind in consecutive blocks, which are taken away together."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from annotated_types import Ge

from keylayers.errors import BadInput
from keylayers.layers.layer import Layer

Odd = Annotated[int, Ge(3)]
"""Number of blocks in a row, the middle one included; `check_odd` has the rest."""


def check_odd(settings: Any) -> None:
    """Raises BadInput for a window that has no middle."""
    if settings.window % 2 == 0:
        raise BadInput(f"{settings.spelled('window', settings.window)}: expected an odd number of blocks, at least 3.")


def split_windows(layers: Sequence[Layer], width: int) -> list[tuple[int, ...]]:
    """For each layer the places of `width` layers of its kind in consecutive blocks of one stack, itself in the middle.

    At the ends of a stack the window moves inwards, so that all are of one size; layers outside the blocks follow one
    another. A stack with fewer layers is one window.

    Raises:
        BadInput: for a width under which every layer has the same window.
    """
    series: dict[tuple[str, str], list[int]] = {}
    for place, layer in enumerate(layers):
        series.setdefault(_series(layer), []).append(place)
    found: list[tuple[int, ...]] = [()] * len(layers)
    for members in series.values():
        size = min(width, len(members))
        for position, place in enumerate(members):
            first = min(max(position - (size - 1) // 2, 0), len(members) - size)
            found[place] = tuple(members[first : first + size])
    if width > 1 and len(layers) > 1 and len(set(found)) == 1:
        raise BadInput(
            f"`settings.window={width}` covers all {len(layers)} layers, which would get one score; give less."
        )
    return found


def enough_layers(layers: Sequence[Layer], settings: Any, batches: int) -> None:
    """Raises BadInput where windows of the settings' size cover all layers alike."""
    split_windows(layers, settings.window)


def shares_above(layers: Sequence[Layer], sets: Iterable[Sequence[int]]) -> list[float]:
    """Share of the blocks from the lowest layer of each set upward, in [0, 1]: 0 for an output head, 1 for what comes
    before the blocks, and for networks without any."""
    blocks = max((layer.block + 1 for layer in layers if layer.block is not None), default=0)
    first = next((place for place, layer in enumerate(layers) if layer.block is not None), 0)

    def start(place: int) -> int:
        block = layers[place].block
        return block if block is not None else 0 if place < first else blocks

    return [(blocks - min(map(start, places))) / blocks if blocks else 1.0 for places in sets]


def _series(layer: Layer) -> tuple[str, str]:
    """Layers of one kind in one stack (encoder or decoder, or a stage)."""
    if layer.block is None:
        return "", ""
    block = layer.name if layer.kind == "block" else layer.name.removesuffix(f".{layer.kind}")
    return block.rpartition(".")[0], layer.kind
