"""Measures of detectors against counting by hand, closed forms, and refusals."""

import numpy as np
import pytest
from scipy import stats

from keylayers.errors import BadInput
from keylayers.measures.detection import auroc, rate_detection, tpr_at


def test_the_area_is_the_share_of_pairs_in_order_with_ties_as_halves() -> None:
    generator = np.random.default_rng(0)
    clean, poisoned = generator.integers(0, 6, 40).astype(float), generator.integers(2, 8, 25).astype(float)
    pairs = np.sign(poisoned[:, None] - clean[None]) / 2 + 0.5
    found = auroc(clean, poisoned)
    assert found.estimate == pytest.approx(pairs.mean(), abs=1e-12)
    assert found.low < found.estimate < found.high <= 1
    swapped = auroc(poisoned, clean)
    assert (swapped.estimate, swapped.low) == (pytest.approx(1 - found.estimate), pytest.approx(1 - found.high))
    assert auroc(np.ones(9), np.ones(7)).estimate == 0.5


def test_the_interval_of_the_area_covers_the_closed_form() -> None:
    """Normals one standard deviation apart: the area is Phi(1 / sqrt 2)."""
    truth, generator = stats.norm.cdf(2**-0.5), np.random.default_rng(1)
    covered = [truth in auroc(generator.normal(0, 1, 40), generator.normal(1, 1, 30)) for _ in range(300)]
    assert 0.91 <= np.mean(covered) <= 0.985


def test_perfect_detection_is_not_called_certain() -> None:
    found = auroc(np.arange(50), np.arange(100, 120))
    assert found.estimate == found.high == 1 and found.low == pytest.approx(0.8389, abs=1e-4)  # Wilson, 20 of 20
    wrong = auroc(np.arange(100, 120), np.arange(50))
    assert wrong.estimate == wrong.low == 0 and wrong.high == pytest.approx(1 - 0.8389, abs=1e-4)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.07, 0.5])
def test_detection_at_a_rate_is_the_best_threshold_that_keeps_it(rate: float) -> None:
    generator = np.random.default_rng(3)
    clean, poisoned = generator.integers(0, 30, 100).astype(float), generator.integers(10, 45, 60).astype(float)
    fit = [one for one in range(-1, 50) if (clean > one).mean() <= rate + 1e-12]  # every threshold, by hand
    found = tpr_at(clean, poisoned, rate)
    assert found.estimate == max((poisoned > one).mean() for one in fit)
    assert found.low <= found.estimate <= found.high


def test_a_whole_report() -> None:
    clean, poisoned = np.linspace(0, 1, 100), np.linspace(0.9, 2, 50)
    found = rate_detection(clean, poisoned, flags=(clean > 0.95, poisoned > 0.95))
    assert found.fpr is not None and found.tpr is not None
    assert found.fpr.estimate == 0.05 and found.tpr.estimate == np.mean(poisoned > 0.95)
    assert set(found.tpr_at) == {0.01, 0.05} and found.tpr_at[0.01].estimate <= found.tpr_at[0.05].estimate
    assert (found.clean, found.poisoned) == (100, 50)
    assert rate_detection(clean, poisoned).tpr is None


@pytest.mark.parametrize(
    ("clean", "poisoned", "message"),
    [
        ([], [1.0], r"clean scores have shape \(0,\)"),
        ([1.0], [], r"poisoned scores have shape \(0,\)"),
        ([[1.0]], [1.0], r"clean scores have shape \(1, 1\)"),
        ([1.0, 2.0], [1.0, float("inf")], "poisoned score 1 is not finite"),
    ],
)
def test_nothing_to_judge_is_refused(clean, poisoned, message: str) -> None:
    for measure in (auroc, rate_detection, lambda a, b: tpr_at(a, b, 0.01)):
        with pytest.raises(BadInput, match=message):
            measure(clean, poisoned)


def test_flags_and_rates_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match=r"flags of poisoned inputs have shape \(1,\).*each of 2"):
        rate_detection([1.0], [1.0, 2.0], flags=([True], [True]))
    with pytest.raises(BadInput, match=r"rate=1\.5"):
        tpr_at([1.0], [1.0], 1.5)
