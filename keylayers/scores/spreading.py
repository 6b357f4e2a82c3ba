"""Scores of blocks or sublayers for the layers inside them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from keylayers.errors import BadScores
from keylayers.layers.layer import Layer
from keylayers.scores.checks import checked_layers
from keylayers.scores.scores import LayerScores


def spread(scores: LayerScores, layers: Sequence[Layer], granularity: str = "linear") -> LayerScores:
    """Every layer with the score of the scored layer that holds it, told by its name; in the given order.

    What no scored layer holds (a head, where blocks were scored) takes the mean score, so that it neither leads nor
    trails. Layers of one holder tie: a policy then draws among them. Repeats go along, groups and bounds do
    not.

    Raises:
        BadScores: if no layer lies within a scored one.
    """
    found = checked_layers(layers, BadScores)
    holders = {layer.name: place for place, layer in enumerate(scores.layers)}
    places = [_holder(layer.name, holders) for layer in found]
    if all(place is None for place in places):
        raise BadScores(
            f"none of the {len(found)} layers, such as {found[0].name}, lies within a scored one, such as "
            f"{scores.layers[0].name}; score the model they belong to."
        )

    def along(values: np.ndarray) -> np.ndarray:
        return np.array([values.mean() if place is None else values[place] for place in places])

    repeats = None if scores.repeats is None else np.stack([along(one) for one in scores.repeats])
    return replace(
        scores, layers=found, values=along(scores.values), granularity=granularity, repeats=repeats, bounds=None,
        groups=None,
    )  # fmt: skip


def ties_shuffled(scores: LayerScores, seed: int) -> LayerScores:
    """The same ranking as whole numbers, the order of layers that tie drawn with the seed, not that of the network.

    Repeats, bounds and groups do not go along.
    """
    drawn = np.random.default_rng(seed).permutation(len(scores.values))
    order = np.lexsort((drawn, scores.values))
    values = np.empty(len(order))
    values[order] = np.arange(len(order), dtype=float)
    return replace(scores, values=values, repeats=None, bounds=None, groups=None)


def _holder(name: str, holders: dict[str, int]) -> int | None:
    """The scored layer of that name, or the innermost whose name begins it at a dot."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if (place := holders.get(".".join(parts[:end]))) is not None:
            return place
    return None
