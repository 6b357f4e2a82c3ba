"""Learning rates chosen by planted losses: for each arm its own, on calibration records, over the seeds that decide."""

import pytest

from keylayers.recipes import retraining
from keylayers.recipes.retraining import Rates, best_rates, every, retrained

SETS = {"one": every(["a"]), "other": every(["b"])}
LOSSES = {
    ("one", 0.01): [1.0, 3.0, 0.0],  # the third seed decides nothing, nor does the lowest of the first two
    ("one", 0.1): [1.9, 1.9, 9.0],
    ("other", 0.01): [2.0, 2.0, 2.0],
    ("other", 0.1): [2.0, 2.1, 0.0],
}


@pytest.fixture
def trained(monkeypatch):
    """Places trained, in order; each gives its planted loss, and on test records the opposite."""
    seen = []

    def planted(desk, task, sets, places, options):
        seen.extend(places)
        losses = {(name, seed, rate): LOSSES[name, rate][seed] for name, seed, rate in places}
        return {place: {"calibration": loss, "test": -loss} for place, loss in losses.items()}

    monkeypatch.setattr(retraining, "_trained", planted)
    return seen


def test_each_arm_takes_the_rate_of_lowest_mean_calibration_loss(trained):
    chosen, found = best_rates(None, None, SETS, Rates((0.01, 0.1), seeds=2))
    assert chosen == {"one": 0.1, "other": 0.01} and set(found) == set(trained) and len(trained) == 8


def test_what_decided_is_not_trained_again(trained):
    results, chosen = retrained(None, None, SETS, 3, Rates((0.01, 0.1), seeds=2))
    assert chosen == {"one": 0.1, "other": 0.01} and len(trained) == len(set(trained)) == 8 + 2
    assert [one["calibration"] for one in results["one"]] == [1.9, 1.9, 9.0]
    assert [one["calibration"] for one in results["other"]] == [2.0, 2.0, 2.0]


def test_a_single_rate_is_not_asked_for(trained):
    results, chosen = retrained(None, None, SETS, 2, Rates((0.1,)))
    assert chosen == {"one": 0.1, "other": 0.1} and len(trained) == 4 and len(results["one"]) == 2
