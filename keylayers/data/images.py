"""Labelled images: scikit-learn's digits or an npz file, and four parts of them that share no image.

Pixels stay bytes until a batch is made. Torch is imported only there.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, UInt8

from keylayers.errors import BadInput, UnknownName
from keylayers.files.bounded import read_arrays

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = "bundled:digits"
MOST_CLASSES = 1_000_000
PARTS = ("train", "reference", "calibration", "test")
"""What the network learns from; what a defender has; what thresholds and settings are chosen on; what is judged on."""


@dataclass(frozen=True, eq=False)
class Images:
    """Images with their classes, and which images of the source they are."""

    pixels: UInt8[np.ndarray, "samples channels height width"]
    labels: Int[np.ndarray, " samples"]
    index: Int[np.ndarray, " samples"]
    """Places in the source; those of its own test part go on from its training part's."""
    classes: tuple[str, ...]
    source: str
    own_test: int | None = None
    """First place of the source's own test part; None: it has none."""

    def __post_init__(self) -> None:
        if not len(self.pixels) == len(self.labels) == len(self.index):
            raise BadInput(
                f"{self.source}: {len(self.pixels)} images, {len(self.labels)} labels and {len(self.index)} places; "
                "expected as many of each."
            )
        bad = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if len(bad):
            raise BadInput(
                f"{self.source}: label {self.labels[bad[0]]} of image {self.index[bad[0]]} is out of range "
                f"({len(bad)} such); its {len(self.classes)} classes are numbered 0 to {len(self.classes) - 1}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: Int[np.ndarray, " chosen"]) -> "Images":
        """Some of them, in the order given."""
        kept = (self.pixels[places], self.labels[places], self.index[places])
        return Images(*kept, self.classes, self.source, self.own_test)

    def drawn(self, count: int, seed: int) -> "Images":
        """So many at random in the order they stand, or all: files are often sorted by class."""
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:count]))

    def tensors(self) -> tuple["Tensor", "Tensor"]:
        """Pixels in [0, 1], float32 (samples, channels, height, width), and labels. Memory: four times the bytes."""
        import torch

        pixels = torch.from_numpy(self.pixels.astype(np.float32)) / 255
        return pixels, torch.from_numpy(self.labels.astype(np.int64))

    def batches(self, size: int, key: str = "x") -> Iterator[dict[str, "Tensor"]]:
        """Batches in order as the criteria take them, the pixels under the name of the network's argument."""
        for start in range(0, len(self), size):
            x, y = self.take(np.arange(start, min(start + size, len(self)))).tensors()
            yield {key: x, "labels": y}


def load_images(source: str | Path) -> Images:
    """All images of `bundled:digits` or of an npz file with `x`, `y` or `x_train`, `y_train`, `x_test`, `y_test`.

    Pixels are bytes, (samples, height, width) or with channels last; `classes` may hold the names. A pickled array is
    refused.

    Raises:
        BadInput: if the file is missing, no npz, lacks an array, or holds other shapes, other numbers, or labels out of
            range.
    """
    if str(source) == DIGITS:
        return _digits()
    path = Path(source).expanduser()
    held = _arrays(path)
    for own in (("",), ("_train", "_test")):
        names = [f"{letter}{part}" for part in own for letter in "xy"]
        if all(name in held for name in names):
            return _assembled(path, held, own)
    raise BadInput(
        f"{path} holds {', '.join(held) or 'nothing'}; expected x and y, or x_train, y_train, x_test and y_test."
    )


def of_images(source: str | None) -> bool:
    """Whether a source of data holds images rather than texts; None: there is no data."""
    return source is not None and (source == DIGITS or Path(source).suffix == ".npz")


def load_pixels(source: str | Path) -> UInt8[np.ndarray, "samples channels height width"]:
    """The images alone, of a file whose labels nobody knows or asks for: `x`, or what `load_images` takes.

    Raises:
        BadInput: as `load_images` does.
    """
    if str(source) == DIGITS:
        return load_images(source).pixels
    path = Path(source).expanduser()
    held = _arrays(path)
    if set(held) <= {"x", "classes"} and "x" in held:
        return _assembled(path, {**held, "y": np.zeros(held["x"].shape[:1], np.int64)}, ("",)).pixels
    if not {"x", "x_train"} & set(held):
        raise BadInput(f"{path} holds {', '.join(held) or 'nothing'}; expected x, the images.")
    return load_images(source).pixels


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return read_arrays(path, f"give an .npz file of images, or {DIGITS}")


def _assembled(path: Path, held: Mapping[str, np.ndarray], own: tuple[str, ...]) -> Images:
    x, y = (_joined(path, [held[f"{letter}{part}"] for part in own]) for letter in "xy")
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise BadInput(
            f"{path}: images are {x.dtype} of shape {x.shape}; expected uint8 (floats in [0, 1]: 255 times, rounded), "
            "of shape (samples, height, width) or (samples, height, width, 1 or 3 channels)."
        )
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise BadInput(f"{path}: labels are {y.dtype} of shape {y.shape}; expected one whole number per image.")
    if len(x) != len(y):
        raise BadInput(f"{path}: {len(x)} images and {len(y)} labels; expected one label per image.")
    pixels = x[:, None] if x.ndim == 3 else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    names = held["classes"] if "classes" in held else _numbers(path, int(y.max(initial=0)))
    if names.ndim != 1:
        raise BadInput(f"{path}: classes are of shape {names.shape}; expected a list of names.")
    first = len(held["x_train"]) if len(own) == 2 else None
    return Images(pixels, y.astype(np.int64), np.arange(len(y)), tuple(map(str, names)), str(path), first)


def _joined(path: Path, parts: list[np.ndarray]) -> np.ndarray:
    if len(parts) > 1 and not all(part.ndim for part in parts):
        raise BadInput(f"{path}: a single number stands where images or labels should; expected an array of samples.")
    if len({part.shape[1:] for part in parts}) > 1 or len({part.dtype for part in parts}) > 1:
        shapes = " and ".join(f"{part.dtype} of shape {part.shape}" for part in parts)
        raise BadInput(f"{path}: its training and test parts are {shapes}; expected the same but for their number.")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _numbers(path: Path, largest: int) -> np.ndarray:
    """The numbers of classes that have no names."""
    if largest > MOST_CLASSES:
        raise BadInput(f"{path}: its largest label is {largest}; expected classes numbered from 0 on.")
    return np.arange(largest + 1).astype(str)


def _digits() -> Images:
    held = _parsed_digits()
    pixels = np.round(held.images * (255 / 16)).astype(np.uint8)[:, None]
    names = tuple(map(str, held.target_names))
    return Images(pixels, held.target.astype(np.int64), np.arange(len(pixels)), names, DIGITS)


@functools.cache
def _parsed_digits() -> Any:
    """Text, compressed: reading it takes longer than a small network's epoch."""
    from sklearn.datasets import load_digits

    return load_digits()


@dataclass(frozen=True)
class ImageParts:
    """Four parts of one source that share no image."""

    train: Images
    reference: Images
    """Clean images that a defence may look at."""
    calibration: Images
    """For thresholds and settings."""
    test: Images
    """To judge on, once."""

    def __post_init__(self) -> None:
        for (one, a), (other, b) in combinations(vars(self).items(), 2):
            shared = np.intersect1d(a.index, b.index)
            if a.source == b.source and len(shared):
                raise BadInput(
                    f"image {shared[0]} of {a.source} is in the {one} and in the {other} part ({len(shared)} shared); "
                    "the four parts must be disjoint: make them with part_images."
                )


def part_images(images: Images, sizes: Mapping[str, int], seed: int = 0, *, held_from_test: bool = False) -> ImageParts:
    """Disjoint parts of the sizes asked for, drawn with a seed; classes as they fall, so look at their counts.

    Where the source has a test part of its own, the test images are drawn from it and all others from the rest; with
    `held_from_test` the reference and calibration images, too: a published network was trained on the rest.

    Raises:
        UnknownName: for a part that does not exist. BadInput: if a size is missing, below 1, or too many are asked for;
            or for `held_from_test` where the source has no test part.
    """
    for name in sizes:
        if name not in PARTS:
            raise UnknownName("part", name, PARTS)
    if any(sizes.get(name, 0) < 1 for name in PARTS):
        raise BadInput(f"sizes={dict(sizes)}: expected at least 1 image for each of {', '.join(PARTS)}.")
    order = np.random.default_rng(seed).permutation(len(images))
    first = len(images) if images.own_test is None else images.own_test
    tests = images.index[order] >= first
    if held_from_test and not tests.any():
        raise BadInput(
            f"{images.source} has no test part of its own (x_test, y_test) to draw reference and calibration images "
            "from; leave held_from_test out."
        )
    held = set(PARTS[1:] if held_from_test else PARTS[3:]) if tests.any() else set()
    pools = {True: order[tests], False: order[~tests]}
    taken: dict[str, Images] = {}
    for name in PARTS:
        pool = name in held
        chosen, pools[pool] = np.split(pools[pool], [sizes[name]])
        if len(chosen) < sizes[name]:
            raise BadInput(
                f"{images.source} has {len(images)} images, {len(chosen)} of them left for the {name} part, which "
                f"should have {sizes[name]}; ask for fewer."
            )
        taken[name] = images.take(chosen)
    return ImageParts(**taken)
