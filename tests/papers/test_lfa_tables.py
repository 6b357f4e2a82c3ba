"""The pages of the screening study on planted figures: nothing works, training breaks off, one block is weighed."""

import dataclasses

import numpy as np
import pytest

from keylayers.layers.naming import named_layers
from keylayers.models.digits import digits_resnet
from keylayers.papers.lfa.cells import (
    ALONE,
    ENTERING,
    EVERY,
    LAST,
    OURS,
    PUBLISHED,
    arms,
    screens,
    weights,
    with_logits,
)
from keylayers.papers.lfa.study import ANY, Results, results
from keylayers.papers.lfa.tables import ARMS, arms_table, choices_table, list_claims, make_tables, victims_table
from keylayers.scores import LayerScores, Selection
from keylayers.studies.image_victims import Backdoor
from keylayers.studies.pages import adjusted, page
from tests.papers.little_images import watched

NOISE = np.array([0.0, 0.01, -0.01, 0.02, -0.02, 0.01])


def victim(success: float) -> dict:
    """One whose attack succeeds so often."""
    return {"file": "f", "accuracy": 0.9, "figures": {"attack_success_rate": [success], "clean_accuracy": [0.8]}}


def study(rival: float, ours: float, noise: np.ndarray = NOISE, name: str = "planted", works: int = 6) -> Results:
    """Six seeds of one attack that works in the first so many."""

    def seen(seed: int) -> dict:
        every = ("auroc", "tpr at 0.01", "tpr at 0.05", "tpr, tau", "fpr, tau", "tpr, conformal", "fpr, conformal")
        made = {arm: dict.fromkeys(every, rival + noise[(seed + 1) % 6]) for arm in (*ARMS, ALONE.format(0))}
        made[ALONE.format(0)] = made[EVERY] = made.pop(ANY)
        made[OURS] = {**made[OURS], "auroc": ours + noise[seed], "fpr, conformal": 0.04 + noise[seed] / 10}
        both = {"0": {"b0": 0.1, "b1": -0.2}, "1": {"b1": 0.3}}
        chosen = {arm: both if arm == PUBLISHED else {"0": {"b0": 0.5}, "1": {"b0": 0.1}} for arm in ARMS}
        return {"arms": made, "weights": chosen, "layers": ["b0", "b1", "head"]}

    asked = watched(seeds=6)
    asked = dataclasses.replace(asked, task=dataclasses.replace(asked.task, name=name))
    victims = tuple(victim(1.0 if seed < works else 0.5) for seed in range(6))
    screened = {None: dict(enumerate(map(seen, range(6)))), "patch": {seed: seen(seed) for seed in range(works)}}
    planted = Results(asked, {None: (victim(0.0),) * 6, "patch": victims}, screened)
    return planted if planted.attacks else dataclasses.replace(planted, screened={})


@pytest.mark.parametrize("works", [0, 1])
def test_a_task_whose_attack_fails_claims_nothing_and_its_page_says_so(works):
    failed, good = study(0.6, 0.81, name="failed", works=works), study(0.6, 0.81, name="good")
    assert list_claims(failed) == []
    text = page("Title", "", make_tables([failed]))
    assert "### Claims" not in text and "No attack works in two seeds or more" in text
    assert f"| patch | 0.800 | {0.5 + works / 12:.3f} | 0.500 | {works} of 6 |" in text
    text = page("Title", "", make_tables([failed, good]))
    assert "| good: layers of interest beat" in text and "| failed: layers" not in text


def test_p_values_are_adjusted_within_each_task():
    noise = np.array([0.0, 0.03, -0.01, 0.02, -0.02, 0.01])
    one, other = study(0.79, 0.81, noise, "one"), study(0.7, 0.81, noise, "other")
    ledger = make_tables([one, other])[0]
    alone = [claim.row() for each in (one, other) for claim in adjusted(list_claims(each))]
    assert list(ledger.rows) == alone and "within each task" in ledger.notes[0]
    assert alone != [
        claim.row() for claim in adjusted([*list_claims(one), *list_claims(other)])
    ]  # else the test shows nothing


def test_a_page_shows_where_an_arm_is_one_block():
    planted = study(0.6, 0.81)
    table = arms_table(planted)
    per_class = {row[0]: row[table.columns.index("layers per class")] for row in table.rows}
    assert per_class[OURS] == "1.0" and per_class[PUBLISHED] == "1.5" and per_class[ANY] == "1.0"
    (note,) = table.notes
    assert f"A single layer with every victim and class: {OURS}, {ENTERING}." in note
    shares = {row[0]: row[1:] for row in choices_table(planted).rows}
    assert shares[OURS] == ("1.00", "0.00", "0.00") and shares[PUBLISHED] == ("0.50", "1.00", "0.00")


def test_where_the_last_block_is_of_interest_the_logits_alone_give_it_a_weight():
    blocks = named_layers(digits_resnet(), "block")
    listed = with_logits(digits_resnet(), blocks)
    assert [one.name for one in listed] == [*(one.name for one in blocks), "linear"]
    rises = np.array([0.01, 0.01, 0.01, 0.02, -0.03, 0.3, 0.05])
    scores, released = (
        LayerScores(layers, rises[: len(layers)], "class_separation", "block",
                    groups={str(one): rises[: len(layers)] for one in range(10)})
        for layers in (blocks, tuple(listed))
    )  # fmt: skip
    chosen = {name: weights(selection) for name, (selection, _) in arms(scores, released).items()}
    names = [one.name for one in blocks]
    assert chosen[OURS]["3"] == {names[4]: 0.3}  # one block: the one before falls, the last is followed by nothing
    assert chosen[PUBLISHED]["3"] == pytest.approx({names[3]: -0.03, names[4]: 0.3, names[5]: 0.05})
    assert chosen[LAST] == {"every class": {names[5]: 1.0}}
    assert isinstance(arms(scores, released)[EVERY][0], Selection) and len(chosen[EVERY]["every class"]) == 6


class Asked:
    """Stands in for a lab: notes what is asked; the first clean model and the patch of seed 1 diverge."""

    def __init__(self) -> None:
        self.victims: list[dict] = []
        self.screens: list[dict] = []

    def ask(self, what: str, asked: list[dict]) -> list[dict]:
        noted = {"make_victim": self.victims, screens.__name__: self.screens}[what]
        noted += asked
        return [self._victim(each) if what == "make_victim" else {} for each in asked]

    def _victim(self, each: dict) -> dict:
        place = (None if each["attack"] is None else each["attack"]["kind"], each["seed"])
        broken = {"file": None, "accuracy": 0.0, "figures": victim(0.0)["figures"], "diverged": "step 3"}
        return broken if place in ((None, 0), ("patch", 1)) else victim(0.95)


def test_victims_that_diverged_are_counted_and_neither_screened_nor_built_upon():
    asked = watched(seeds=3, **{"patch": Backdoor("patch"), "label-consistent": Backdoor("label-consistent")})
    lab = Asked()
    found = results(lab, asked)
    built = [each["seed"] for each in lab.victims if each["attack"] and each["attack"]["kind"] == "label-consistent"]
    assert built == [1, 2] and all(each.get("benign", "f") == "f" for each in lab.victims)
    assert found.judged("patch") == [0, 2] and found.judged("label-consistent") == [1, 2] == found.judged(None)
    assert {name: sorted(seeds) for name, seeds in found.screened.items()} == {
        None: [1, 2], "patch": [0, 2], "label-consistent": [1, 2],
    }  # fmt: skip
    assert all(each["file"] == "f" for each in lab.screens) and len(lab.screens) == 6
    table = victims_table(found)
    assert [row[-1] for row in table.rows] == ["1 of 3"] * 3 and table.rows[0][1] == "0.900"
    assert table.rows[1][2:5] == ("0.950", "0.950", "2 of 3") and "broke off" in table.notes[0]
