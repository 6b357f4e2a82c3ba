"""The promise of a conformal threshold: as a count over every way of leaving one out, and as a rate over draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from keylayers.errors import BadInput
from keylayers.maths.conformal import bound, calibration_needed, conformal_threshold

ALPHAS = st.sampled_from([0.01, 0.05, 0.07, 0.1, 0.25, 0.5, 0.9])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_of_any_scores_at_most_the_promised_number_is_flagged_when_each_in_turn_is_the_new_one(data) -> None:
    """Exchangeable: each of n + 1 is the new one equally often. Ties included: some scores are small whole numbers."""
    alpha = data.draw(ALPHAS)
    count = data.draw(st.integers(calibration_needed(alpha), calibration_needed(alpha) + 30))
    tied = data.draw(st.booleans())
    number = st.integers(0, 4) if tied else st.floats(-1e6, 1e6)
    scores = np.array(data.draw(st.lists(number, min_size=count + 1, max_size=count + 1, unique=not tied)), dtype=float)
    flagged = sum(scores[place] > conformal_threshold(np.delete(scores, place), alpha) for place in range(len(scores)))
    assert flagged <= alpha * (count + 1) * (1 + 1e-9)
    if not tied:
        assert flagged == round(bound(count, alpha) * (count + 1))  # and not one fewer


def test_the_rate_over_draws_is_the_bound_and_that_of_one_calibration_set_is_a_beta() -> None:
    count, alpha, generator = 39, 0.05, np.random.default_rng(0)
    rates = np.array(
        [stats.norm.sf(conformal_threshold(generator.standard_normal(count), alpha)) for _ in range(4000)]
    )  # the exact rate of false alarms of each calibration set
    assert bound(count, alpha) == 2 / 40
    law = stats.beta(2, 38)
    assert rates.mean() == pytest.approx(0.05, abs=4 * law.std() / len(rates) ** 0.5)
    assert stats.kstest(rates, law.cdf).pvalue > 0.01
    assert (rates > 0.08).mean() > 0.1  # an average, no promise for the one set at hand


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.5, 1), (0.3, 3), (0.9, 1)])
def test_how_many_are_needed(alpha: float, needed: int) -> None:
    assert calibration_needed(alpha) == needed
    assert np.isfinite(conformal_threshold(np.arange(needed), alpha))
    if needed > 1:
        with pytest.raises(BadInput, match=rf"{needed - 1} calibration inputs cannot .* {needed} are needed"):
            conformal_threshold(np.arange(needed - 1), alpha)


def test_what_is_no_share_or_no_number_is_refused() -> None:
    for alpha in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(BadInput, match="between 0 and 1"):
            calibration_needed(alpha)
    with pytest.raises(BadInput, match="one finite number per input"):
        conformal_threshold([1.0] * 30 + [float("nan")], 0.05)
