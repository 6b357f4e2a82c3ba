"""Learning rates chosen by planted losses: for each arm its own, on calibration records, over all seeds."""

from types import SimpleNamespace

import pytest

from keylayers.measures.blow_ups import best_rate, blown_up, noted, with_rate
from keylayers.studies import retraining
from keylayers.studies.retraining import BLEW_UP, LearningRateGrid, best_rates, retrained, same_for_all_seeds

SETS = {"one": same_for_all_seeds(["a"]), "other": same_for_all_seeds(["b"])}
LOSSES = {
    ("one", 0.01): [1.0, 1.0, 1.0],  # over the first two seeds the other rate is better
    ("one", 0.1): [0.8, 0.8, 4.0],
    ("other", 0.01): [2.0, 2.0, 2.0],
    ("other", 0.1): [2.0, 2.1, 0.0],
}
TASK = SimpleNamespace(name="planted")
DESK = SimpleNamespace(ask=lambda task, what, asked: [{"calibration": 9.0}])


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


def test_each_arm_takes_the_rate_of_lowest_mean_calibration_loss_over_all_seeds(trained):
    results, chosen = retrained(DESK, TASK, SETS, 3, LearningRateGrid((0.01, 0.1)))
    assert chosen == {"one": 0.01, "other": 0.1} and len(trained) == len(set(trained)) == 12
    assert [result["test"] for result in results["other"]] == [-2.0, -2.1, 0.0]
    assert [result[BLEW_UP] for result in results["one"]] == ["", "", ""]
    assert best_rates(DESK, TASK, SETS, LearningRateGrid((0.01, 0.1)), 3) == chosen


def test_a_single_rate_trains_nothing_to_be_chosen_and_is_judged_too(trained):
    assert best_rates(DESK, TASK, SETS, LearningRateGrid((0.1,)), 3) == {"one": 0.1, "other": 0.1} and not trained
    results, _ = retrained(DESK, TASK, SETS, 3, LearningRateGrid((0.1,)))
    assert [bool(result[BLEW_UP]) for result in results["one"]] == [False, False, True]


def test_a_training_that_diverged_is_passed_over_though_its_mean_is_lower(monkeypatch):
    def planted(desk, task, sets, places, options):
        lost = {"diverged": "loss is nan"}
        return {place: {"calibration": 5 - place[2], **(lost if place[1:] == (1, 0.1) else {})} for place in places}

    monkeypatch.setattr(retraining, "_trained", planted)
    assert retrained(DESK, TASK, {"one": same_for_all_seeds(["a"])}, 2, LearningRateGrid((0.01, 0.1)))[1] == {
        "one": 0.01
    }
    results, _ = retrained(DESK, TASK, {"one": same_for_all_seeds(["a"])}, 2, LearningRateGrid((0.1,)))
    assert [result[BLEW_UP] for result in results["one"]] == ["", "loss is nan"]


def test_a_draw_that_diverged_stays_known_in_the_mean():
    both = [{"calibration": 1.0}, {"calibration": 3.0, "diverged": "loss is nan"}]
    assert retraining._of_draws(both) == {"calibration": 2.0, "diverged": "loss is nan"}


def test_which_trainings_blew_up():
    before = 14.0
    odd = blown_up({0.01: [2.3, 2.2, 2.5, 2.4, 2.3], 0.03: [1.8, 1.4, 5.8, 2.4, 2.2]}, before)
    assert [bool(reason) for reason in odd[0.03]] == [False, False, True, False, False] and not any(odd[0.01])
    assert "5.800" in odd[0.03][2] and "2.000 (median)" in odd[0.03][2]
    # the seed's layers are poor, at every rate: no training blew up at the higher one
    assert not any(blown_up({0.01: [2.3, 2.2, 6.0], 0.03: [1.8, 1.4, 5.8]}, before)[0.03])
    # of two seeds neither is the odd one; a loss that is none, or no lower than before, needs no others
    assert blown_up({0.1: [1.0, 13.0]}, before) == {0.1: ("", "")}
    assert all(blown_up({0.1: [float("nan"), 14.0]}, before)[0.1])


def test_the_best_rate_has_the_fewest_blow_ups_then_the_lowest_mean():
    tried = {0.01: [2.0, 2.0], 0.02: [1.0, 1.0], 0.03: [0.1, 0.1]}
    assert best_rate(tried, {0.01: ["", ""], 0.02: ["", ""], 0.03: ["", "lost"]}) == 0.02
    assert best_rate({0.01: [3.0, float("nan")], 0.02: [4.0, 4.0]}, {0.01: ["", "x"], 0.02: ["x", ""]}) == 0.02


def test_tables_say_how_many_blew_up_and_what_that_means():
    assert with_rate(0.03, ["", "lost", ""]) == "0.03 (1 of 3 blew up)" and with_rate(0.03, ["", ""]) == "0.03"
    (note,) = noted({"one": ["", "lost"], "other": ["", ""]})
    assert note.startswith("Blew up: one (1 of 2).") and "before training" in note
    assert noted({"one": [""]}) == ()
