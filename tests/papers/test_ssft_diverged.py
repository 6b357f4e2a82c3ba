"""Trainings of the cleansing study that break off, and attacks that fail: results like any other, in no mean."""

import json
from dataclasses import replace

import numpy as np
import pytest

from keylayers.errors import Diverged
from keylayers.papers.ssft import cells
from keylayers.papers.ssft.cells import CLEAN, DIVERGED, ORACLE, OWN, FinetuneSchedule, compute
from keylayers.papers.ssft.claims import list_claims
from keylayers.papers.ssft.results import HINDSIGHT, MIDDLE, RANDOM, SUCCESS, TWO, Cleansing
from keylayers.papers.ssft.study import results
from keylayers.papers.ssft.tables import introduction, make_tables, to_json
from keylayers.runs import open_run
from keylayers.studies.lab import Lab
from keylayers.studies.pages import page
from tests.papers.little_images import LITTLE, watched
from tests.papers.planted_ssft import SKIPS, planted

BROKEN = {DIVERGED: "the loss is nan in epoch 3; lower the learning rate."}
TASK = watched(network=LITTLE).task.fields()


def fail(*_, **__):
    raise Diverged(BROKEN[DIVERGED])


@pytest.fixture(scope="module")
def victims(tmp_path_factory):
    folder = tmp_path_factory.mktemp("victims")
    attack = vars(watched().attacks["patch"])
    asked = [{"task": TASK, "seed": 0, "attack": each} for each in (attack, None)]
    attacked, clean = (compute(str(folder), {"do": "make_victim", **each}) for each in asked)
    shared = {"task": TASK, "seed": 0}
    return str(folder), {**shared, "attack": attack, "file": attacked["file"]}, {**shared, "file": clean["file"]}


HOW = {"skips": ["layer1.0.skip"], "factor": 0.0, "tune": "stage", "recipe": vars(FinetuneSchedule(1, 0.02, 50))}


def test_a_cleansing_that_diverges_is_a_result(victims, monkeypatch):
    folder, attacked, clean = victims
    monkeypatch.setattr(cells, "cleanse", fail)
    assert compute(folder, {"do": "suppressed", **attacked, **HOW}) == {**BROKEN, "oracle": False}
    assert compute(folder, {"do": "cost", **clean, **HOW}) == BROKEN


def test_a_later_tuning_that_diverges_is_a_result_and_is_not_run_where_nobody_asks(victims, monkeypatch):
    folder, attacked, _ = victims
    monkeypatch.setattr(cells, "LATER", FinetuneSchedule(3, 1e30, 50))
    assert "the loss is" in compute(folder, {"do": "suppressed", **attacked, **HOW})[DIVERGED]
    found = compute(folder, {"do": "suppressed", **attacked, **HOW, "later": False})
    assert set(found["attacked"]) >= {"before", "after"} and "later" not in found["attacked"]


def test_a_planting_that_diverges_blames_nothing_and_leaves_the_other_rules(victims, monkeypatch):
    folder, attacked, _ = victims
    whole = compute(folder, {"do": "blamed", **attacked})
    monkeypatch.setattr(cells, "plant_backdoor", fail)
    found = compute(folder, {"do": "blamed", **attacked})
    assert found[DIVERGED] == {OWN: BROKEN[DIVERGED]} and found["scores"][OWN] is None
    assert DIVERGED not in whole and found["skips"] == whole["skips"]
    for rule in (ORACLE, CLEAN):
        assert found["scores"][rule] == whole["scores"][rule]
    assert found["scores"][CLEAN] is not None


def study(folder, answer, seeds=2):
    """Results where `answer` gives what a cell records, or None for figures that do not matter."""

    def computed(_, fields):
        shares = {what: {SUCCESS: [0.5], "clean_accuracy": [0.9], "recovered_accuracy": [0.5]}
                  for what in ("before", "after", "later")}  # fmt: skip
        usual = {
            "make_victim": {"file": "some", "accuracy": 1.0, "figures": {SUCCESS: [1.0]}, DIVERGED: None},
            "blamed": {"skips": SKIPS, "scores": {ORACLE: None, OWN: [0.2, 0.3, 0.0], CLEAN: [0.1, 0.2, 0.3]}},
            "skips": {"names": SKIPS, "stages": ("a", "a", "b")},
            "suppressed": {"attacked": shares, "oracle": False},
            "cost": {"before": 0.98, "after": 0.97},
        }
        return answer(fields) or usual[fields["do"]]

    with open_run(folder, "study", {}) as run:
        return results(Lab(run, computed), Cleansing(watched(seeds), FinetuneSchedule(1, 0.02, 50)))


def test_models_whose_own_training_diverged_are_neither_judged_nor_weighed(tmp_path):
    def answer(fields):
        if fields["do"] == "make_victim" and fields["seed"] == (1 if fields["attack"] else 0):
            return {**BROKEN, "file": None, "figures": None}
        return None

    one = study(tmp_path, answer, seeds=3)
    assert one.success == {"patch": (1.0, None, 1.0)} and one.judged == [("patch", 0), ("patch", 2)]
    assert {seed for seed, _ in one.costs} == {1, 2} and {seed for _, seed, _ in one.outcomes} == {0, 2}
    text = page("Title", introduction([one], "smoke"), make_tables([one]))
    assert "| patch | 1.000 | 2 of 3; diverged: 1 |" in text and "nan" not in text
    assert json.loads(json.dumps(to_json([one])))["small digits"]["success"]["patch"] == [1.0, None, 1.0]


@pytest.mark.parametrize("figures", [{SUCCESS: [0.4]}, None], ids=["weak", "diverged"])
def test_a_task_in_which_no_attack_works_says_so_and_costs_nothing_more(figures, tmp_path):
    def answer(fields):
        if fields["do"] == "make_victim":
            return {"file": "some", "figures": figures, **(BROKEN if figures is None else {})}
        return None

    one = study(tmp_path, answer)
    assert not one.judged and not one.outcomes and not one.costs and list_claims(one) == []
    text = page("Title", introduction([one], "smoke"), make_tables([one]))
    assert "No attack worked" in text and "nan" not in text and "which skip to silence" not in text
    both = page("Title", introduction([one], "smoke"), make_tables([planted(), one]))
    assert "No attack worked" in both and "which skip to silence" in both


def test_what_diverged_is_in_no_mean_and_is_counted():
    one, place = planted(blend=False), ("patch", 2)
    lost = {(*place, key): BROKEN for key in ("a.1", TWO)}
    changed = replace(one, outcomes={**one.outcomes, **lost}, costs={**one.costs, (0, "a.1"): BROKEN})
    assert np.isnan(changed.value(place, ORACLE, "after", SUCCESS)) and np.isnan(changed.twin(place, ORACLE))
    rest = np.mean([one.figure(place, skip, "after", SUCCESS) for skip in ("a.0", "b.0")])
    assert changed.value(place, RANDOM, "after", SUCCESS) == pytest.approx(rest)
    assert changed.keys(place, HINDSIGHT) == ["b.0"]  # the best of those that came to an end
    told = {each.text: each for each in list_claims(changed)}
    for text, each in told.items():
        pairs = 4 if any(arm in text for arm in (ORACLE, OWN, TWO)) else 5
        assert each.effect.pairs == pairs, text
    assert any("the two most blamed by an own trigger: where it cures (4 of 5 victims)" in text for text in told)
    text = page("Title", introduction([changed], "smoke"), make_tables([changed]))
    rows = {row.split(" | ")[0]: row for row in text.splitlines()}
    assert rows[f"| {TWO}"].endswith("4 of 5; diverged: 1 |") and rows[f"| {MIDDLE}"].endswith("5 of 5 |")
    assert rows[f"| {RANDOM}"].endswith("5 of 5; diverged: 1 |")
    assert f"2 of {len(one.outcomes)} trainings of victims and 1 of 15 of unattacked models" in text
    assert "nan" not in text and "Diverged*" not in page("Title", "", make_tables([one])[:2])


def test_an_arm_that_diverged_everywhere_stands_empty():
    one = planted(blend=False)
    lost = {place: BROKEN if place[2] in SKIPS else found for place, found in one.outcomes.items()}
    text = page("Title", introduction([one], "smoke"), make_tables([replace(one, outcomes=lost)]))
    assert "0 of 5; diverged: 15" in text and "nan" not in text


def test_a_planting_that_diverged_is_told_from_a_trigger_that_blames_nothing():
    one, place = planted(blend=False), ("patch", 0)
    scores = {**one.blamed[place]["scores"], OWN: None, ORACLE: None}
    changed = replace(one, blamed={**one.blamed, place: {"scores": scores, DIVERGED: {OWN: "the loss is nan"}}})
    (row,) = make_tables([changed])[-1].rows
    assert row[1:3] == ("a.1 x 4, none x 1", "a.1 x 4, diverged x 1")
