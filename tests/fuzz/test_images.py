"""Files of images, as their readers meet them."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.data.images import load_images, load_pixels
from tests.fuzz.mutations import damaged, few, only_ours


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def _images(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


IMAGES = _images(x=np.zeros((3, 4, 4), np.uint8), y=np.arange(3), classes=np.array(["a", "b", "c"]))


def look(path) -> None:
    """Reads images both ways, and uses them."""
    for read in (load_images, load_pixels):
        found = only_ours(lambda read=read: read(path))
        if found is not None and read is load_images and len(found) < 100:
            only_ours(lambda found=found: list(found.batches(2)))


@few()
@given(content=damaged(IMAGES))
def test_damaged_images(place, content):
    (place / "a.npz").write_bytes(content)
    look(place / "a.npz")


NAMES = st.sampled_from("x y x_train y_train x_test y_test classes z".split())
ARRAYS = st.builds(
    lambda shape, kind: np.zeros(shape, kind),
    st.lists(st.integers(0, 4), max_size=5).map(tuple),
    st.sampled_from(["u1", "i8", "f4", "f8", "?", "U3", "S2", "M8[s]", "c16", "u8", "V4", "O"]),
)


@few()
@given(arrays=st.dictionaries(NAMES, ARRAYS, max_size=5))
def test_odd_arrays(place, arrays):
    (place / "b.npz").write_bytes(_images(**arrays))
    look(place / "b.npz")


@few()
@given(labels=st.lists(st.sampled_from([0, 1, -1, 2, 2**31, 2**62]), min_size=3, max_size=3))
def test_odd_labels(place, labels):
    (place / "c.npz").write_bytes(_images(x=np.zeros((3, 4, 4), np.uint8), y=np.array(labels, np.int64)))
    look(place / "c.npz")
