import subprocess
import sys

import numpy as np
import pytest
import torch

from keylayers.data.images import PARTS, ImageParts, Images, load_images, part_images
from keylayers.errors import BadInput, UnknownName

SIZES = {"train": 20, "reference": 5, "calibration": 6, "test": 7}


def stored(tmp_path, **arrays):
    np.savez_compressed(tmp_path / "some.npz", **arrays)
    return tmp_path / "some.npz"


def made(count: int = 40, own_test: int | None = None) -> Images:
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 2, 2), np.uint8)
    return Images(pixels, np.arange(count) % 3, np.arange(count), ("a", "b", "c"), "made", own_test)


def test_digits_are_sklearns() -> None:
    from sklearn.datasets import load_digits

    x, y = load_images("bundled:digits").tensors()
    truth = load_digits()
    assert x.shape == (1797, 1, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
    np.testing.assert_allclose(x[:, 0].numpy(), truth.images / 16, atol=0.5 / 255 + 1e-6)
    assert (y.numpy() == truth.target).all()


def test_channels_come_first_and_pixels_lie_in_the_unit_interval(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3), dtype=np.uint8)
    images = load_images(stored(tmp_path, x=pixels, y=np.arange(5, dtype=np.uint8), classes=np.array(list("abcde"))))
    x, y = images.tensors()
    assert torch.equal(x, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert y.tolist() == [0, 1, 2, 3, 4] and images.classes == tuple("abcde") and images.own_test is None


def test_a_source_with_its_own_test_part_keeps_it_apart(tmp_path) -> None:
    grey = np.zeros((30, 4, 4), np.uint8)
    source = stored(tmp_path, x_train=grey, y_train=np.arange(30) % 2, x_test=grey[:10], y_test=np.arange(10) % 2)
    images = load_images(source)
    assert images.pixels.shape == (40, 1, 4, 4) and images.own_test == 30
    parts = part_images(images, SIZES | {"train": 15})
    assert (parts.test.index >= 30).all()
    assert all((getattr(parts, name).index < 30).all() for name in PARTS[:3])
    with pytest.raises(BadInput, match="10 of them left for the test part"):
        part_images(images, SIZES | {"train": 15, "test": 11})


def test_what_a_defence_has_can_be_held_from_the_own_test_part() -> None:
    images = made(40, own_test=20)
    parts = part_images(images, SIZES, seed=1, held_from_test=True)
    assert {name: len(getattr(parts, name)) for name in PARTS} == SIZES
    assert (parts.train.index < 20).all()
    held = [getattr(parts, name).index for name in PARTS[1:]]
    assert all((index >= 20).all() for index in held) and len(np.unique(np.concatenate(held))) == 5 + 6 + 7
    with pytest.raises(BadInput, match="9 of them left for the test part, which should have 10"):
        part_images(images, SIZES | {"test": 10}, held_from_test=True)
    with pytest.raises(BadInput, match="made has no test part of its own"):
        part_images(made(), SIZES, held_from_test=True)


def test_a_draw_is_of_all_images_in_their_order_and_depends_on_the_seed() -> None:
    images = made(40)
    drawn = images.drawn(10, seed=1)
    assert (np.diff(drawn.index) > 0).all() and len(drawn) == 10 and drawn.index.max() > 20
    assert (drawn.pixels[:, 0, 0, 0] == drawn.index).all()
    assert (images.drawn(10, seed=1).index == drawn.index).all() and set(images.drawn(10, 2).index) != set(drawn.index)
    assert (images.drawn(100, seed=1).index == images.index).all()


def test_parts_are_disjoint_and_depend_on_nothing_but_the_seed() -> None:
    parts, again, other = (part_images(made(), SIZES, seed) for seed in (0, 0, 1))
    assert {name: len(getattr(parts, name)) for name in PARTS} == SIZES
    everything = np.concatenate([getattr(parts, name).index for name in PARTS])
    assert len(set(everything.tolist())) == len(everything) == sum(SIZES.values())
    assert all((getattr(parts, name).index == getattr(again, name).index).all() for name in PARTS)
    assert (parts.train.index != other.train.index).any()
    assert (parts.test.pixels[:, 0, 0, 0] == parts.test.index).all()  # images go with their places


def test_parts_that_share_an_image_are_refused() -> None:
    parts = part_images(made(), SIZES)
    leaked = parts.train.take(np.arange(2))
    with pytest.raises(BadInput, match=r"image \d+ of made is in the train and in the reference part \(2 shared\)"):
        ImageParts(parts.train, leaked, parts.calibration, parts.test)


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        (SIZES | {"tset": 3}, UnknownName, "did you mean 'test'"),
        (SIZES | {"reference": 0}, BadInput, "at least 1 image for each of train, reference"),
        (SIZES | {"train": 100}, BadInput, "has 40 images, 40 of them left for the train part, which should have 100"),
    ],
)
def test_impossible_parts_are_refused(sizes, error, message) -> None:
    with pytest.raises(error, match=message):
        part_images(made(), sizes)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 4, 4), np.float32), "y": np.zeros(2, np.int64)}, "images are float32"),
        ({"x": np.zeros((2, 3, 4, 4), np.uint8), "y": np.zeros(2, np.int64)}, r"of shape \(2, 3, 4, 4\)"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(2)}, "labels are float64"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(3, np.int64)}, "2 images and 3 labels"),
        ({"x": np.zeros((2, 4, 4), np.uint8)}, "holds x; expected x and y"),
        ({name: np.array(0) for name in ("x_train", "y_train", "x_test", "y_test")}, "a single number stands where"),
        ({"x": np.array(3), "y": np.arange(3)}, r"images are int64 of shape \(\)"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.array([0, 10**15])}, "largest label is 1000000000000000"),
        (
            {"x": np.zeros((1, 4, 4), np.uint8), "y": np.zeros(1, int), "classes": np.array(3)},
            r"classes are of shape \(\)",
        ),
        (
            {"x_train": np.zeros((1, 4, 4), np.uint8), "x_test": np.zeros((1, 5, 4), np.uint8)}
            | {f"y_{part}": np.zeros(1, int) for part in ("train", "test")},
            r"parts are uint8 of shape \(1, 4, 4\) and uint8 of shape \(1, 5, 4\)",
        ),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.array([0, -1])}, "label -1 of image 1 is out of range"),
        (
            {"x": np.zeros((2, 4, 4), np.uint8), "y": np.array([2, 0]), "classes": np.array(["a", "b"])},
            r"label 2 of image 0 is out of range \(1 such\); its 2 classes are numbered 0 to 1",
        ),
    ],
)
def test_files_that_hold_other_things_are_refused(tmp_path, arrays, message) -> None:
    with pytest.raises(BadInput, match=message):
        load_images(stored(tmp_path, **arrays))


def test_missing_files_pickles_and_damaged_files_are_refused(tmp_path) -> None:
    with pytest.raises(BadInput, match=r"absent\.npz cannot be read"):
        load_images(tmp_path / "absent.npz")
    with pytest.raises(BadInput, match=r"some\.npz, x\.npy is pickled"):
        load_images(stored(tmp_path, x=np.array([object()]), y=np.zeros(1, np.int64)))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(BadInput, match=r"no \.npz of plain arrays"):
        load_images(tmp_path / "cut.npz")


def test_batches_hold_every_image_once_in_order() -> None:
    batches = list(made(7).batches(3, key="pixel_values"))
    assert [len(batch["labels"]) for batch in batches] == [3, 3, 1]
    assert (torch.cat([batch["pixel_values"] for batch in batches])[:, 0, 0, 0] * 255).round().tolist() == list(
        range(7)
    )


def test_importing_it_imports_no_torch() -> None:
    code = "import keylayers.data.images, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
