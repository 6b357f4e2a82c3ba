"""Fitting a screen: centroids and spreads from clean reference inputs, thresholds from calibration inputs apart."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from keylayers.actions.screening import Screen, ScreenSettings
from keylayers.errors import BadInput
from keylayers.maths.centroids import ClassSums
from keylayers.maths.conformal import calibration_needed, conformal_threshold
from keylayers.measures.features import (
    Predict,
    checked_classes,
    classes_of,
    features_of,
    inputs_of,
    predicted_classes,
    records_in,
)
from keylayers.measures.loss import evaluating
from keylayers.measures.objective import Batch
from keylayers.scores.selection import Selection

LEAST = 3
"""Reference records of a class: of two, each is the other's centroid, and their similarities do not differ."""
SMALLEST_SPREAD = 1e-6
"""Of similarities: what rounding makes of equal ones."""


def fit_screen(
    model: nn.Module,
    selection: Selection | Mapping[int, Selection],
    reference: Sequence[Batch],
    calibration: Sequence[Batch] | None = None,
    settings: ScreenSettings | None = None,
    *,
    predict: Predict | None = None,
) -> Screen:
    """A screen at the selected layers, by their weights (1 each where a selection has none).

    One selection serves all classes; a mapping gives each class its own. Reference and calibration are clean, and no
    input is in both. Two passes over the reference, one over the calibration inputs; the model is left as found.
    Memory: classes x width of the features at each selected layer, and one batch. A conformal threshold flags a share
    of at most `alpha` of clean inputs that come as the calibration inputs did (exchangeable with them), averaged over
    calibration sets; with `per_class`, of those predicted to be any one class.

    Raises:
        BadInput: if a class has too few reference or calibration inputs, or no selection; for a label out of range; if
            reference and calibration share an input. UnknownName: for a selected layer that the model does not have.
    """
    # deviates: paper takes thresholds from the images whose centroids they are; here reference similarities are to
    # leave-one-out centroids, and a conformal threshold comes from other images, as a rate of false alarms is promised.
    settings = settings or ScreenSettings()
    if settings.threshold == "conformal" and not calibration:
        raise BadInput("threshold=conformal needs clean calibration inputs apart from the reference; or set tau.")
    if not reference:
        raise BadInput("the reference is empty; give batches of clean inputs of every class.")
    if calibration and settings.threshold == "conformal":
        _require_apart(reference, calibration)
    fitting = _Fitting(model, settings, predict, _layer_names(selection))
    with evaluating(model), torch.no_grad():
        sums = fitting.sums(reference)
        weights = _weights(selection, fitting.names, fitting.count)
        means, spreads = fitting.moments(reference, sums, weights)
    screen = Screen(
        fitting.names,
        tuple(sums[name].units(range(fitting.count)).float().cpu() for name in fitting.names),
        weights,
        means,
        spreads,
        np.full(fitting.count, settings.tau),
        settings,
        own_predict=predict is not None,
    )
    if settings.threshold == "tau":
        return screen
    assert calibration is not None
    seen = list(screen.stream(model, calibration, predict))
    classes, suspicion = (np.concatenate([getattr(one, name) for one in seen]) for name in ("classes", "suspicion"))
    counts = np.bincount(classes, minlength=fitting.count)
    thresholds = _thresholds(settings, classes, suspicion, counts)
    return replace(screen, thresholds=thresholds, calibrated=tuple(counts.tolist()))


class _Fitting:
    """The passes over the reference."""

    def __init__(
        self, model: nn.Module, settings: ScreenSettings, predict: Predict | None, names: tuple[str, ...]
    ) -> None:
        self.model, self.settings, self.predict, self.names = model, settings, predict, names
        self.count = 0
        """Classes."""

    def sums(self, reference: Sequence[Batch]) -> dict[str, ClassSums]:
        """Of every layer. Raises BadInput for a class with too few members."""
        sums = {name: ClassSums() for name in self.names}
        for rows, classes, member in self._passes(reference):
            for name, held in sums.items():
                held.add(rows[name][member], classes[member])
        if self.predict is not None:
            self.count = 1 + max(sums[self.names[0]].counts, default=-1)
        counts = sums[self.names[0]].counts
        few = {one: counts.get(one, 0) for one in range(self.count) if counts.get(one, 0) < LEAST}
        if few or not self.count:
            shown = ", ".join(f"class {one}: {count}" for one, count in list(few.items())[:5])
            raise BadInput(
                f"{len(few)} of {self.count} classes have too few records in the reference ({shown}); each that the "
                f"network can predict needs {LEAST} or more, better 50, with members={self.settings.members}."
            )
        return sums

    def moments(
        self, reference: Sequence[Batch], sums: Mapping[str, ClassSums], weights: Float[np.ndarray, "classes layers"]
    ) -> tuple[Float[np.ndarray, " classes"], Float[np.ndarray, " classes"]]:
        """Mean and standard deviation of S over the members of each class."""
        similarities: list[Float[np.ndarray, " members"]] = []
        members: list[Int[np.ndarray, " members"]] = []
        for rows, classes, member in self._passes(reference):
            own = classes[member]
            total = np.zeros(len(own))
            for column, name in enumerate(self.names):
                alike = sums[name].cosines(rows[name][member], own, leave_one_out=self.settings.leave_one_out)
                total += weights[own.numpy(), column] * alike.numpy()
            similarities.append(total)
            members.append(own.numpy())
        every, of = np.concatenate(similarities), np.concatenate(members)
        groups = [every[of == one] for one in range(self.count)]
        spreads = np.array([group.std() for group in groups])
        return np.array([group.mean() for group in groups]), np.maximum(spreads, SMALLEST_SPREAD)

    def _passes(self, reference: Sequence[Batch]) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        """Features, classes, and which records are members of their class."""
        for batch in reference:
            rows, logits = features_of(self.model, batch, self.names, self.settings.position)
            records = records_in(inputs_of(batch))
            if self.predict is not None:
                found, known = self.predict(batch, logits), None
            else:
                found = predicted_classes(batch, logits, self.settings.tokens)
                known = self.count = len(self.settings.tokens) or logits.shape[-1]
            predicted = checked_classes(found, records, known, "the predicted classes")
            if self.settings.members == "predicted":
                yield rows, predicted, torch.ones(records, dtype=torch.bool)
                continue
            labels = classes_of(batch, known)
            member = labels == predicted if self.settings.members == "agreed" else torch.ones(records, dtype=torch.bool)
            yield rows, labels, member


def _layer_names(selection: Selection | Mapping[int, Selection]) -> tuple[str, ...]:
    """Names of the layers with a weight in some selection, in forward order."""
    every = [selection] if isinstance(selection, Selection) else list(selection.values())
    if not every:
        raise BadInput("no selection is given; expected one, or one for each class.")
    if any(one.layers != every[0].layers for one in every):
        raise BadInput("the classes' selections are over different layers; make them from one list of layers.")
    used = np.any([one.mask if one.weights is None else one.weights != 0 for one in every], axis=0)
    if not used.any():
        raise BadInput("every selected layer has weight 0; give weights, or a selection without.")
    return tuple(layer.name for layer, keep in zip(every[0].layers, used, strict=True) if keep)


def _weights(
    selection: Selection | Mapping[int, Selection], names: tuple[str, ...], count: int
) -> Float[np.ndarray, "classes layers"]:
    """Each class's own weights. Raises BadInput if a class has none."""
    if isinstance(selection, Selection):
        selection = dict.fromkeys(range(count), selection)
    absent = [one for one in range(count) if one not in selection]
    if absent:
        raise BadInput(
            f"{len(absent)} of {count} classes have no selection, first class {absent[0]}; give one for every class "
            "that the network can predict."
        )
    made = np.zeros((count, len(names)))
    for one in range(count):
        own = selection[one]
        values = own.mask.astype(float) if own.weights is None else own.weights
        by_name = dict(zip((layer.name for layer in own.layers), values.tolist(), strict=True))
        made[one] = [by_name[name] for name in names]
    return made


def _thresholds(
    settings: ScreenSettings,
    classes: Int[np.ndarray, " inputs"],
    suspicion: Float[np.ndarray, " inputs"],
    counts: Int[np.ndarray, " classes"],
) -> Float[np.ndarray, " classes"]:
    if not settings.per_class:
        return np.full(len(counts), conformal_threshold(suspicion, settings.alpha))
    needed = calibration_needed(settings.alpha)
    few = np.flatnonzero(counts < needed)
    if len(few):
        shown = ", ".join(f"class {one}: {counts[one]}" for one in few[:5])
        raise BadInput(
            f"{len(few)} of {len(counts)} classes have too few calibration inputs for alpha={settings.alpha:.3g} in "
            f"each class ({shown}); {needed} predicted to be each are needed",
            "give more clean inputs",
            "allow more false alarms (`alpha`)",
            "hold the share over all classes together, not in each",
        )
    return np.array([conformal_threshold(suspicion[classes == one], settings.alpha) for one in range(len(counts))])


def _require_apart(reference: Sequence[Batch], calibration: Sequence[Batch]) -> None:
    """Raises BadInput if an input is in both: the centroids have seen it, and the promise would not hold."""
    seen = {digest for batch in reference for digest in _digests(batch)}
    shared = sum(digest in seen for batch in calibration for digest in _digests(batch))
    if shared:
        raise BadInput(
            f"{shared} calibration inputs are in the reference, too; take them from different parts of the data "
            "(keylayers.data.images.part_images makes such)."
        )


def _digests(batch: Batch) -> Iterator[bytes]:
    tensors = [value.detach().cpu() for value in inputs_of(batch).values() if isinstance(value, Tensor) and value.ndim]
    for row in range(records_in(inputs_of(batch))):
        sha = hashlib.sha256()
        for one in tensors:
            sha.update(one[row].contiguous().reshape(-1).view(torch.uint8).numpy().data)
        yield sha.digest()
