"""Screening: inputs whose features at the selected layers are unlike those of the class they are predicted to be."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.files import explained
from keylayers.files.checked import read_tensors, write_tensors
from keylayers.maths.centroids import cosines
from keylayers.maths.conformal import bound
from keylayers.measures.features import (
    Position,
    Predict,
    checked_classes,
    features_of,
    predicted_classes,
    records_in,
)
from keylayers.measures.loss import evaluating
from keylayers.measures.objective import Batch
from keylayers.settings import Inside, Natural, NotNegative, Settings

Threshold = Literal["conformal", "tau"]
Members = Literal["labels", "predicted", "agreed"]

FORMAT = "keylayers/screen/1"


@dataclass(frozen=True)
class ScreenSettings(Settings):
    """How a screen is fitted."""

    threshold: Threshold = "conformal"
    """Where suspicion begins: at a quantile of calibration inputs, or at `tau`, as published."""
    alpha: Inside = 0.05
    """Of `conformal`: most clean inputs that may be flagged, as a share."""
    per_class: bool = False
    """Of `conformal`: hold the share in each predicted class by itself (Mondrian), not over all; needs 1 / alpha - 1
    calibration inputs of every class."""
    tau: NotNegative = 2.5
    """Of `tau`: standard deviations below the reference's mean similarity."""
    leave_one_out: bool = True
    """Of the reference's similarities: to the centroid of a class's other records; False, as published: to its own."""
    members: Members = "labels"
    """Whose features make a class's centroid: records of that label, those predicted to be it, or both at once."""
    position: Position = "auto"
    tokens: tuple[Natural, ...] = ()
    """Of language models: the first token of each class's answer; the most likely of them is the predicted class."""


@dataclass(frozen=True, eq=False)
class Screened:
    """What a screen says of a batch."""

    classes: Int[np.ndarray, " batch"]
    """As predicted."""
    similarity: Float[np.ndarray, " batch"]
    """S(x): weighted sum over layers of the cosine with the centroid of the predicted class."""
    suspicion: Float[np.ndarray, " batch"]
    """Standard deviations by which S lies below the mean of the class's reference; higher = more suspicious."""
    flags: Bool[np.ndarray, " batch"]
    """Suspicion above the threshold of the class."""


@dataclass(frozen=True, eq=False)
class Screen:
    """Centroids, weights and thresholds of every class at some layers; the model to watch is given with each batch."""

    layers: tuple[str, ...]
    """Names of those with a weight in some class, in forward order."""
    centroids: tuple[Float[Tensor, "classes d_model"], ...]
    """Of each layer, of length 1; float32."""
    weights: Float[np.ndarray, "classes layers"]
    means: Float[np.ndarray, " classes"]
    """Of S over the reference's records of the class."""
    spreads: Float[np.ndarray, " classes"]
    """Standard deviations of the same."""
    thresholds: Float[np.ndarray, " classes"]
    """Largest suspicion that passes."""
    settings: ScreenSettings
    calibrated: tuple[int, ...] = ()
    """Calibration inputs of each predicted class; none where the threshold is `tau`."""
    own_predict: bool = False
    """Whether classes come from a function, which must then be given again with every batch."""
    _placed: dict[torch.device, tuple[Tensor, ...]] = field(default_factory=dict, init=False, repr=False)

    def screened(self, model: nn.Module, batch: Batch, predict: Predict | None = None) -> Screened:
        """Judges a batch, by one forward pass in eval mode; the model is left as found. Memory: one batch's features.

        Raises:
            BadInput: for inputs of another size than the reference's, or classes it did not have. Diverged: if features
                are not finite; names the layer.
        """
        if self.own_predict and predict is None:
            raise BadInput("this screen was fitted with classes from a function; give the same one as `predict`.")
        with evaluating(model), torch.no_grad():
            rows, logits = features_of(model, batch, self.layers, self.settings.position)
            found = (predict or self._predict)(batch, logits)
            classes = checked_classes(found, records_in(batch), len(self.means), "the predicted classes")
            similarity = self._similarity(rows, classes)
        of = classes.numpy()
        suspicion = (self.means[of] - similarity) / self.spreads[of]
        return Screened(of, similarity, suspicion, suspicion > self.thresholds[of])

    def scores(self, model: nn.Module, batch: Batch, predict: Predict | None = None) -> Float[np.ndarray, " batch"]:
        """Suspicion of each input, in standard deviations; higher = more suspicious."""
        return self.screened(model, batch, predict).suspicion

    def flags(self, model: nn.Module, batch: Batch, predict: Predict | None = None) -> Bool[np.ndarray, " batch"]:
        """Which inputs to reject."""
        return self.screened(model, batch, predict).flags

    def stream(self, model: nn.Module, batches: Iterable[Batch], predict: Predict | None = None) -> Iterator[Screened]:
        """Judges batch after batch, keeping none."""
        for batch in batches:
            yield self.screened(model, batch, predict)

    @property
    def promise(self) -> str:
        """What is known of the rate of false alarms, in words."""
        if self.settings.threshold == "tau":
            return f"none: tau={self.settings.tau:g} was chosen by hand"
        alpha, counts = self.settings.alpha, self.calibrated
        over = "of each predicted class" if self.settings.per_class else "in all"
        rates = [bound(count, alpha) for count in (counts if self.settings.per_class else (sum(counts),))]
        return (
            f"flags at most {max(rates):.3g} of clean inputs {over}, on average over calibration sets, if they come as "
            f"the {sum(counts)} calibration inputs did (split conformal)"
        )

    def _predict(self, batch: Batch, logits: Tensor) -> Tensor:
        return predicted_classes(batch, logits, self.settings.tokens)

    def _similarity(self, rows: Mapping[str, Tensor], classes: Int[Tensor, " batch"]) -> Float[np.ndarray, " batch"]:
        total = np.zeros(len(classes))
        for column, name in enumerate(self.layers):
            own, weight = rows[name], self.weights[classes.numpy(), column]
            held = self._on(own.device)[column]
            if own.shape[1] != held.shape[1]:
                raise BadInput(
                    f"layer {name} has {own.shape[1]} features per input, but the reference had {held.shape[1]}",
                    "give inputs of that size",
                    "fit with the mean over positions (`position`)",
                )
            total += weight * cosines(own, held[classes.to(own.device)].to(own.dtype)).double().cpu().numpy()
        return total

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self._placed:
            self._placed[device] = tuple(one.to(device) for one in self.centroids)
        return self._placed[device]


def save_screen(screen: Screen, path: str | Path) -> None:
    """Writes one safetensors file with the rest as JSON in its header. Raises BadInput if it cannot be written."""
    tensors = {f"centroids.{index}": one for index, one in enumerate(screen.centroids)}
    for name in ("weights", "means", "spreads", "thresholds"):
        tensors[name] = torch.from_numpy(np.array(getattr(screen, name)))
    meta = {
        "format": FORMAT,
        "layers": list(screen.layers),
        "settings": asdict(screen.settings) | {"tokens": list(screen.settings.tokens)},
        "calibrated": list(screen.calibrated),
        "own_predict": screen.own_predict,
    }
    write_tensors(path, tensors, meta)


def load_screen(path: str | Path) -> Screen:
    """The screen in a file. Raises BadInput if it is missing, damaged, or no screen."""
    tensors, meta = read_tensors(path)
    if meta.get("format") != FORMAT:
        raise BadInput(f"{path} is of format {meta.get('format')!r}; expected {FORMAT!r}, as save_screen writes it.")
    with explained(f"{path} is not what save_screen writes"):
        layers: Sequence[str] = meta["layers"]
        arrays: dict[str, Any] = {name: tensors[name].numpy() for name in ("weights", "means", "spreads", "thresholds")}
        return Screen(
            tuple(layers),
            tuple(tensors[f"centroids.{index}"] for index in range(len(layers))),
            settings=ScreenSettings(**meta["settings"]),
            calibrated=tuple(meta["calibrated"]),
            own_predict=meta["own_predict"],
            **arrays,
        )
