"""Scores by what layers share, such as their kind: means, and the order in which whole groups come."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from keylayers.layers.layer import Layer
from keylayers.scores.scores import LayerScores


def averaged(scores: LayerScores, labels: Sequence[str]) -> LayerScores:
    """Every layer with the mean score of those that share its label: what the label alone knows of the ranking."""
    groups: dict[str, list[float]] = {}
    for label, value in zip(labels, scores.values, strict=True):
        groups.setdefault(label, []).append(float(value))
    means = {label: sum(values) / len(values) for label, values in groups.items()}
    values: Float[np.ndarray, " layers"] = np.array([means[label] for label in labels])
    return replace(scores, values=values, repeats=None, bounds=None, groups=None)


def restricted(scores: LayerScores, layers: Sequence[Layer]) -> LayerScores:
    """The same scores for some of the layers, in their order."""
    kept = {layer.name for layer in layers}
    places = [place for place, layer in enumerate(scores.layers) if layer.name in kept]
    return replace(
        scores,
        layers=tuple(scores.layers[place] for place in places),
        values=scores.values[places],
        repeats=None if scores.repeats is None else scores.repeats[:, places],
        bounds=None if scores.bounds is None else scores.bounds[places],
        groups=None if scores.groups is None else {name: each[places] for name, each in scores.groups.items()},
    )


def kinds_first(scores: LayerScores) -> Int[np.ndarray, " layers"]:
    """Places of the layers, the kind of highest mean score whole before the next, and by score within it; ties in
    forward order."""
    by_kind = averaged(scores, [layer.kind for layer in scores.layers]).values
    return np.lexsort((-scores.values, -by_kind))
