import numpy as np
import pytest

from keylayers.errors import BadInput
from keylayers.maths.elbow import find_elbow


@pytest.mark.parametrize("place", [1, 4, 7, 10])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_two_exact_lines_meet_where_they_meet(place: int, scale: float) -> None:
    x = np.arange(12.0)
    found = find_elbow(scale * (1 - 0.01 * x - 0.2 * np.maximum(x - place, 0)))
    assert found.place == place and found.confidence > 0.99 and found.no_elbow < 1e-6


def test_one_line_has_no_elbow_and_a_constant_neither() -> None:
    assert find_elbow(1 - 0.1 * np.arange(12.0)).no_elbow > 0.5
    assert find_elbow(np.full(12, 0.3)).no_elbow == 1
    rng = np.random.default_rng(0)
    noisy = [find_elbow(1 - 0.1 * np.arange(12.0) + rng.normal(0, 0.05, 12)) for _ in range(50)]
    assert np.mean([one.no_elbow for one in noisy]) > 0.5 > 0.2 > np.mean([one.confidence for one in noisy])


def test_confidence_falls_with_noise_and_is_a_share() -> None:
    x = np.arange(20.0)
    bent = 1 - 0.05 * np.maximum(x - 9, 0)
    rng = np.random.default_rng(1)
    sure, unsure = (
        np.mean([find_elbow(bent + rng.normal(0, noise, 20)).confidence for _ in range(40)]) for noise in (0.005, 0.1)
    )
    assert sure > 0.8 > 0.5 > unsure


def test_on_average_the_confidence_is_how_often_the_place_is_right() -> None:
    x, rng = np.arange(24.0), np.random.default_rng(2)
    sure, right = [], []
    for _ in range(200):
        place = rng.integers(4, 20)
        found = find_elbow(-0.05 * np.maximum(x - place, 0) + rng.normal(0, 0.03, 24))
        sure.append(found.confidence)
        right.append(found.place == place)
    assert np.mean(sure) == pytest.approx(np.mean(right), abs=0.1)


def test_what_has_no_elbow_is_refused() -> None:
    with pytest.raises(BadInput, match="at least 5 points, got 4"):
        find_elbow(np.arange(4.0))
    with pytest.raises(BadInput, match="finite"):
        find_elbow(np.array([1, 2, np.nan, 4, 5, 6]))
