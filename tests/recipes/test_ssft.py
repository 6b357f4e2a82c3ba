"""The cleansing study in miniature: every skip judged by who holds the trigger; tables on its figures."""

import json

import numpy as np
import pytest

from keylayers.errors import UnknownName
from keylayers.layers.naming import named_layers
from keylayers.recipes.ssft import (
    ALONE,
    AS_RELEASED,
    HINDSIGHT,
    MIDDLE,
    RANDOM,
    RULES,
    TWO,
    WHOLE,
    Cleansing,
    Scale,
    reproduce,
    scale_of,
)
from keylayers.recipes.ssft_cells import CLEAN, ORACLE, OWN, Recipe, best
from keylayers.recipes.ssft_tables import SUCCESS, claims, introduction, plain, tables
from keylayers.runs import open_run
from keylayers.studies.pages import page
from tests.recipes.images import watched


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssft")
    asked = Cleansing(watched(), Recipe(1, 0.02, 50))
    with open_run(folder, "study", {}) as run:
        (results,) = list(reproduce(Scale((asked,)), run, processes=1))
    return results[0], folder


def test_every_skip_and_every_control_is_judged_after_and_later(found):
    one, _ = found
    names = [layer.name for layer in named_layers(one.cleansing.watched.task.untrained(0), "skip")]
    assert list(one.skips) == names and one.stages == ("layer1", "layer1", "layer2", "layer2", "layer3", "layer3")
    assert one.judged == [("patch", 0), ("patch", 1)]
    two = {TWO} if one.blamed["patch", 0]["scores"][OWN] else set()
    expected = {*names, *two, "layer1 alone", "layer2 alone", "layer3 alone", WHOLE, AS_RELEASED}
    assert {arm for attack, seed, arm in one.outcomes if (attack, seed) == ("patch", 0)} == expected
    for outcome in one.outcomes.values():
        assert not outcome["oracle"] and outcome["control"]["before"]["clean_accuracy"][0] > 0.8
        assert {"before", "after", "later"} <= set(outcome["attacked"])


def test_arms_are_means_over_their_members_and_the_bound_is_the_best(found):
    one, _ = found
    place = ("patch", 0)
    values = [one.value(place, skip, "after", SUCCESS) for skip in one.skips]
    assert one.value(place, RANDOM, "after", SUCCESS) == pytest.approx(np.mean(values))
    assert one.value(place, HINDSIGHT, "after", SUCCESS) == min(values)
    assert one.value(place, MIDDLE, "after", SUCCESS) == pytest.approx(np.mean(values[2:4]))
    assert one.members(place, ALONE) == ["layer1 alone", "layer2 alone", "layer3 alone"]
    scores = one.blamed[place]["scores"]
    assert set(scores) == set(RULES) and one.members(place, CLEAN) == [one.skips[best(scores[CLEAN])[0]]]
    assert one.value(place, ORACLE, "after", SUCCESS) == values[best(scores[ORACLE])[0]]
    assert best([0.1, 0.3, 0.3]) == (1,) and best([0.1, 0.3, 0.3], 2) == (1, 2)


def test_a_rule_that_blames_no_skip_counts_nowhere(found):
    one, _ = found
    place = ("patch", 0)
    scores = {**one.blamed[place]["scores"], CLEAN: None}
    changed = type(one)(
        one.cleansing, one.skips, one.stages, one.success, {place: {"skips": one.skips, "scores": scores}}, one.outcomes
    )
    assert np.isnan(changed.value(place, CLEAN, "after", SUCCESS)) and changed.members(place, CLEAN) == []
    assert np.isnan(changed.per_seed(CLEAN, "after", SUCCESS)).all()


def test_a_finished_study_is_read_back_and_its_page_says_its_figures(found, monkeypatch):
    one, folder = found
    monkeypatch.setattr("keylayers.recipes.ssft_cells.DO", {})
    with open_run(folder, "study", {}) as run:
        (again,) = list(reproduce(Scale((one.cleansing,)), run, processes=1))
    assert json.dumps(plain(again)) == json.dumps(plain([one]))
    text = page("Title", introduction([one], "smoke"), tables([one]))
    assert "is an oracle" in text and f"{one.per_seed(WHOLE, 'after', SUCCESS).mean():.3f} ±" in text
    assert any("beats fine-tuning alone" in told.text for told in claims(one))


def test_an_unknown_scale_is_named(monkeypatch):
    monkeypatch.delenv("KEYLAYERS_MODELS", raising=False)
    (only,) = scale_of("small").cleansings
    assert "label-consistent" not in only.watched.attacks and only.watched.seeds == 5
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        scale_of("smal")
