"""How much a layer draws the inputs of each class together: the layer of interest of layer-wise feature analysis."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import Work
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.capturing import capture
from keylayers.layers.layer import Layer
from keylayers.layers.tensor_swap import frozen
from keylayers.maths.centroids import ClassSums
from keylayers.measures.features import (
    Position,
    checked_classes,
    classes_of,
    is_text,
    predicted_classes,
    rows_at,
)
from keylayers.measures.objective import Batch
from keylayers.scores.scores import LayerScores
from keylayers.scores.selection import Selection

Whose = Literal["labels", "predicted"]
Weights = Literal["entering", "leaving", "released"]

LEAST = 2
"""Records of a class below which it has no leave-one-out centroid and is left out."""


@dataclass(frozen=True)
class ClassSeparation(CriterionSettings):
    """Settings of `class_separation`."""

    position: Position = "auto"
    """Which features of a record: all of them (images, as published), or those of the last token of a text's prompt."""
    classes: Whose = "labels"
    """Whether a record's class is what the data says or, as released, what the network predicts (images alone)."""
    leave_one_out: bool = True
    """Compare a record with the centroid of the others of its class; False, as published: with one it is part of."""


def _work(layers: Sequence[Layer], settings: ClassSeparation, batches: int) -> Work:
    return Work(2 * batches, 0)


@criterion("model", "data", settings=ClassSeparation, work=_work, labelled=True)
def score_class_separation(evidence: Evidence, layers: Sequence[Layer], settings: ClassSeparation) -> LayerScores:
    """Rise of the classes' cohesion across a layer, mean over classes, in [-2, 2]; `groups` holds each class's own.

    Cohesion of class c at layer l is the mean cosine of its records' features with their centroid; the score is
    cohesion after the layer minus that after the layer before it in the list (of what enters the first). A class's
    layer of interest has the largest rise of the second half (`layers_of_interest`); Jebreel et al. 2023
    (arXiv:2302.12758) look for poisoned inputs there. Intervals treat records as independent. Two passes: sums, then
    cosines. Memory: classes x width of the features at every layer, in float64, and one batch.

    Raises:
        BadInput: if the data does not say a class per record, no class has two records, or a layer is no module.
        Diverged: if features are not finite; names the layer.
    """
    # deviates: paper compares each sample with a centroid it is part of; here with that of the others, because with few
    # samples per class its own share is most of the cosine where features are wide.
    assert evidence.model is not None and evidence.data is not None
    names = tuple(layer.name for layer in layers)
    sums = [ClassSums() for _ in range(len(names) + 1)]
    rises, steps = _Rises(len(names)), 2 * len(evidence.data)
    with frozen(evidence.model), torch.no_grad():
        for index, batch in enumerate(evidence.data):
            classes, rows = _features(evidence, batch, names, settings)
            for one, held in zip(rows, sums, strict=True):
                held.add(one, classes)
            if evidence.progress:
                evidence.progress(index + 1, steps, 0.0)
        kept = sorted(one for one, count in sums[0].counts.items() if count >= LEAST)
        if not kept:
            raise BadInput(
                f"no class has {LEAST} records among {sum(sums[0].counts.values())}; how alike a class's records are "
                "shows from two on."
            )
        for index, batch in enumerate(evidence.data):
            classes, rows = _features(evidence, batch, names, settings)
            alike = [
                held.cosines(one, classes, leave_one_out=settings.leave_one_out)
                for one, held in zip(rows, sums, strict=True)
            ]
            rises.add(torch.stack(alike, 1).diff(dim=1).numpy(), classes)
            if evidence.progress:
                evidence.progress(len(evidence.data) + index + 1, steps, 0.0)
    counts = sums[0].counts
    means = {one: rises.mean(one) for one in kept}
    value = np.mean(list(means.values()), axis=0)
    error = np.sqrt(np.sum([rises.variance(one) / counts[one] for one in kept], axis=0)) / len(kept)
    left_out = {str(one): count for one, count in sorted(counts.items()) if one not in means}
    made = scored(evidence, layers, value, criterion="class_separation", settings=settings, left_out=left_out)
    bounds = np.stack([value - 1.96 * error, value + 1.96 * error], 1)
    return replace(made, bounds=bounds, groups={str(one): mean for one, mean in means.items()})


class _Rises:
    """Rises of the cosine across each layer, record by record: sums and squares of each class."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self._held: dict[int, Float[np.ndarray, "moments layers"]] = {}
        self._counts: dict[int, int] = {}

    def add(self, rises: Float[np.ndarray, "batch layers"], classes: Int[Tensor, " batch"]) -> None:
        for one in classes.unique().tolist():
            own = rises[classes.numpy() == one]
            held = self._held.setdefault(one, np.zeros((2, self.layers)))
            held += np.stack([own.sum(0), np.square(own).sum(0)])
            self._counts[one] = self._counts.get(one, 0) + len(own)

    def mean(self, one: int) -> Float[np.ndarray, " layers"]:
        return self._held[one][0] / self._counts[one]

    def variance(self, one: int) -> Float[np.ndarray, " layers"]:
        count = self._counts[one]
        return np.maximum(self._held[one][1] - count * self.mean(one) ** 2, 0) / (count - 1)


def _features(
    evidence: Evidence, batch: Batch, names: tuple[str, ...], settings: ClassSeparation
) -> tuple[Int[Tensor, " batch"], list[Tensor]]:
    """Classes, and features of what enters the first layer and of what leaves each, from one forward pass."""
    predicts = settings.classes == "predicted"
    classes = None if predicts else classes_of(batch)
    output = "" if predicts or not is_text(batch) else None  # to know the classes there are; a text's head costs more
    inputs = {key: value for key, value in batch.items() if key != "classes"}
    assert evidence.model is not None
    with capture(evidence.model, names if output is None else (*names, output), stop=True) as seen:
        evidence.loss(evidence.model, inputs)
    absent = [name for name in names if name not in seen.outputs]
    if absent:
        raise BadInput(f"layer {absent[0]} never ran, so it has no features; leave it out.")
    if output is not None and seen.outputs[output].ndim == 2:
        logits = seen.outputs[output]
        known = logits.shape[1] if "classes" not in batch else None
        classes = predicted_classes(batch, logits) if classes is None else classes
        classes = checked_classes(classes, len(classes), known, "labels")
    if classes is None:
        raise BadInput(
            "the network predicts no class of a text; name each record's class, and give `settings.classes=labels`."
        )
    hidden = [(seen.inputs[names[0]], names[0]), *((seen.outputs[name], name) for name in names)]
    return classes, [rows_at(one, batch, settings.position, name) for one, name in hidden]


def layers_of_interest(
    scores: LayerScores, *, layers: int = 3, weights: Weights = "leaving", clamped: bool = True, stem: bool = False
) -> dict[int, Selection]:
    """For each class its layer of interest and the `layers` - 1 before it, with weights; never out of range.

    The layer of interest is the one with the largest rise above the middle of the list, in which what enters the first
    layer counts as one where `stem` (the released list starts with the stem). A layer weighs what cohesion
    rises as it is left, the paper's d_l: the largest jump then weighs the layer before the one of interest, and the
    last layer of all, which nothing follows, weighs 0 (the released code stops with an error). `entering`, ours: what
    it rises as the layer is entered, so that the layer of interest weighs most. `released` gives every class the d_l of
    the last class, as the released code does by mistake. Negative weights, which reward what is unlike the class,
    become 0 where `clamped`; layers of weight 0 are left out.

    Raises:
        BadInput: for scores without classes. UnknownName: for other weights.
    """
    # deviates: paper takes d_l as it is; here not below 0, because a negative weight makes unlike inputs look benign.
    if weights not in get_args(Weights):
        raise UnknownName("weights of layers of interest", str(weights), get_args(Weights))
    if not scores.groups or layers < 1:
        raise BadInput(
            f"layers={layers} of interest are asked of {scores.criterion!r} scores of {len(scores.groups or {})} "
            "classes; expected at least 1 layer, and scores of class_separation."
        )
    made, count = {}, len(scores.layers)
    last = scores.groups[max(scores.groups, key=int)]
    for name, rise in scores.groups.items():
        first = min((count + 1) // 2 if stem else count // 2 + 1, count - 1)
        place = first + int(np.argmax(rise[first:]))
        source = last if weights == "released" else rise
        each = rise if weights == "entering" else np.append(source[1:], 0.0)
        near = np.arange(max(0, place - layers + 1), place + 1)
        own: Any = np.zeros(count)
        own[near] = np.maximum(each[near], 0) if clamped else each[near]
        if not own.any():
            own[place] = 1.0  # cohesion falls everywhere near: the least fall alone
        policy = f"layer of interest of class {name}: {scores.layers[place].name}"
        made[int(name)] = Selection(scores.layers, own != 0, policy, weights=own, allow_total=True)
    return made
