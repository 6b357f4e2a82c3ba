"""Centroids from a stream against the rows held at once, and own shares removed against really removing the row."""

import numpy as np
import pytest
import torch

from keylayers.errors import BadInput
from keylayers.maths.centroids import ClassSums, cosines, unit_rows


def rows(count: int = 40, width: int = 7, classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(count, width, generator=generator) + 0.3
    return made, torch.randint(0, classes, (count,), generator=generator) * 3  # numbers with gaps


def streamed(features: torch.Tensor, classes: torch.Tensor, size: int) -> ClassSums:
    held = ClassSums()
    for some, of in zip(features.split(size), classes.split(size), strict=True):
        held.add(some, of)
    return held


@pytest.mark.parametrize("size", [1, 7, 40])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_a_stream_gives_what_the_rows_at_once_give_and_what_removing_each_row_gives(
    size: int, leave_one_out: bool
) -> None:
    features, classes = rows()
    held = streamed(features, classes, size)
    found = held.cosines(features, classes, leave_one_out=leave_one_out).numpy()
    dense = features.double().numpy()
    for place, one in enumerate(classes.tolist()):
        members = np.flatnonzero(classes.numpy() == one)
        if leave_one_out:
            members = members[members != place]
        centroid = dense[members].mean(0)
        truth = dense[place] @ centroid / np.linalg.norm(dense[place]) / np.linalg.norm(centroid)
        assert found[place] == pytest.approx(truth, abs=1e-12)
    means = torch.stack([features[classes == one].double().mean(0) for one in (9, 0)])
    torch.testing.assert_close(held.units([9, 0]), unit_rows(means), rtol=0, atol=1e-12)
    assert held.counts == {int(one): int((classes == one).sum()) for one in classes.unique()}


def test_what_a_record_adds_to_its_own_centroid_is_most_of_its_cosine_where_features_are_wide() -> None:
    """Independent noise, 10 rows of width 5000: cosine 1 / sqrt(10) with the own mean, 0 with that of the others."""
    noise = torch.randn(10, 5000, generator=torch.Generator().manual_seed(1))
    held, one = ClassSums(), torch.zeros(10, dtype=torch.long)
    held.add(noise, one)
    assert float(held.cosines(noise, one, leave_one_out=False).mean()) == pytest.approx(10**-0.5, abs=0.01)
    assert abs(float(held.cosines(noise, one).mean())) < 0.01


def test_a_class_of_one_row_and_rows_of_zero_have_cosine_zero() -> None:
    held, classes = ClassSums(), torch.tensor([0, 1, 1])
    features = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])
    held.add(features, classes)
    assert held.cosines(features, classes).tolist() == [0, 0, 0]
    assert held.cosines(features, classes, leave_one_out=False).tolist() == pytest.approx([1, 0, 1])
    assert cosines(features, features * 1e-20).tolist() == pytest.approx([1, 0, 1])
    assert unit_rows(features[1:2]).tolist() == [[0, 0]]


def test_features_of_another_width_are_refused() -> None:
    held = ClassSums()
    held.add(torch.ones(2, 3), torch.tensor([0, 1]))
    with pytest.raises(BadInput, match="width 4 after 3 before"):
        held.add(torch.ones(2, 4), torch.tensor([0, 1]))
