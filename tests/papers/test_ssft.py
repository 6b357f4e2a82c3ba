"""The cleansing study in miniature: every skip judged by who holds the trigger; claims on planted figures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from keylayers.errors import UnknownName
from keylayers.layers.naming import named_layers
from keylayers.papers.ssft.cells import CLEAN, ORACLE, OWN, FinetuneSchedule, best, released
from keylayers.papers.ssft.claims import list_claims
from keylayers.papers.ssft.results import (
    AS_RELEASED,
    CLEAN_SHARE,
    HINDSIGHT,
    MIDDLE,
    RANDOM,
    RELEASED_TWIN,
    RULES,
    SUCCESS,
    TWIN,
    TWO,
    WHOLE,
    Cleansing,
    Results,
)
from keylayers.papers.ssft.study import Scale, of_real, reproduce, scale_of
from keylayers.papers.ssft.tables import introduction, make_tables, to_json
from keylayers.runs import open_run
from keylayers.studies.image_victims import KINDS, Backdoor
from keylayers.studies.pages import page
from keylayers.training.planted_backdoor import Checkerboard, own_trigger
from tests.papers.little_images import LITTLE, watched
from tests.papers.planted_ssft import SKIPS, planted

SHORT = {"RELEASED_IMAGES": 128, "LATER": FinetuneSchedule(2, 0.02, 50)}
"""Images the released code is said to tune on, so that its recipe has 10 steps and not 390; a short tuning later."""


def shorten(patched: pytest.MonkeyPatch) -> None:
    for name, value in SHORT.items():
        patched.setattr(f"keylayers.papers.ssft.cells.{name}", value)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssft")
    asked = Cleansing(watched(network=LITTLE), FinetuneSchedule(1, 0.02, 50))
    with pytest.MonkeyPatch.context() as patched, open_run(folder, "study", {}) as run:
        shorten(patched)
        (results,) = list(reproduce(Scale((asked,)), run, processes=1))
    return results[0], folder


def test_every_skip_and_its_control_is_judged_after_and_later(found):
    one, _ = found
    names = [layer.name for layer in named_layers(one.cleansing.watched.task.untrained(0), "skip")]
    assert list(one.skips) == names and one.stages == ("layer1", "layer2", "layer3")
    assert one.judged == [("patch", 0), ("patch", 1)]
    keys = {key for attack, seed, key in one.outcomes if (attack, seed) == ("patch", 0)}
    assert {*names, "layer1 alone", "layer2 alone", "layer3 alone", WHOLE} <= keys
    scores = one.blamed["patch", 0]["scores"]
    assert (TWO in keys) == (scores[OWN] is not None and len(best(scores[OWN], 2)) == 2)
    assert (AS_RELEASED in keys) == (scores[ORACLE] is not None)
    for (_, _, key), outcome in one.outcomes.items():
        assert outcome["oracle"] == (key in (AS_RELEASED, RELEASED_TWIN)) and {"before", "after"} <= set(
            outcome["attacked"]
        )
        assert ("later" in outcome["attacked"]) != (
            key.endswith(" alone") or key == RELEASED_TWIN
        )  # of a twin nobody asks what comes later
    assert set(one.costs) == {(seed, skip) for seed in (0, 1) for skip in names}
    assert all(each["before"] > 0.8 for each in one.costs.values())


def test_a_finished_study_is_read_back_and_its_page_says_its_figures(found, monkeypatch):
    one, folder = found
    monkeypatch.setattr("keylayers.papers.ssft.cells.DO", {})
    shorten(monkeypatch)
    with open_run(folder, "study", {}) as run:
        (again,) = list(reproduce(Scale((one.cleansing,)), run, processes=1))
    assert json.dumps(to_json(again)) == json.dumps(to_json([one]))
    text = page("Title", introduction([one], "smoke"), make_tables([one]))
    assert "is an oracle" in text and f"{one.per_seed(WHOLE, 'after', SUCCESS).mean():.3f} ±" in text


def told(one: Results) -> dict:
    return {each.text.partition(": ")[2]: each for each in list_claims(one)}


def test_arms_are_means_over_their_members_and_the_bound_is_one_skip_throughout():
    one, place = planted(), ("patch", 0)
    values = [one.figure(place, skip, "after", SUCCESS) for skip in SKIPS]
    assert one.value(place, RANDOM, "after", SUCCESS) == pytest.approx(np.mean(values))
    assert one.keys(place, HINDSIGHT) == ["a.1"] and one.value(place, HINDSIGHT, "after", SUCCESS) == min(values)
    assert one.value(place, HINDSIGHT, "after", CLEAN_SHARE) == 0.9  # of that skip, not the worst of any
    assert one.keys(place, MIDDLE) == ["b.0"] and one.keys(place, ORACLE) == ["a.1"] == one.keys(place, OWN)
    assert one.keys(place, TWO) == [TWO] and one.twins(place, TWO) == ["a and b alone"]
    assert one.twins(place, ORACLE) == ["a alone"] and one.twins(place, MIDDLE) == ["b alone"]
    assert one.twins(place, WHOLE) == [] and one.twins(place, AS_RELEASED) == [RELEASED_TWIN]
    assert one.twins(("blend", 0), AS_RELEASED) == []  # whose rule blames nothing there
    assert best([0.1, 0.3, 0.3]) == (1,) and best([0.1, 0.3, 0.3], 2) == (1, 2)


def test_a_second_skip_that_is_not_blamed_is_not_silenced():
    """Not even where it is the second best: silencing it would be a choice by lot."""
    assert best([0.0, 0.3, -0.1], 2) == (1,) and best([0.0, 0.0, 0.0]) == ()
    one, place = planted(), ("patch", 0)
    scores = {**one.blamed[place]["scores"], OWN: [0.0, 0.3, 0.0]}
    changed = replace(one, blamed={**one.blamed, place: {"skips": SKIPS, "scores": scores}})
    assert changed.keys(place, TWO) == ["a.1"] == changed.keys(place, OWN) and changed.twins(place, TWO) == ["a alone"]
    assert changed.value(place, TWO, "later", SUCCESS) == changed.value(place, OWN, "later", SUCCESS)
    assert one.keys(("patch", 1), TWO) == [TWO] == changed.keys(("patch", 1), TWO)


def test_a_rule_that_blames_no_skip_gains_nothing_by_it():
    """Were victims without a choice left out of one side alone, every rule would beat every control."""
    same = {key: 0.9 for key in ("a.0", "a.1", "b.0", "a alone", "b alone", "a and b alone", TWO)}
    verdicts = {text: each.verdict for text, each in told(planted(**same)).items()}
    for arm in (*RULES, TWO):
        assert verdicts[f"silencing by {arm} beats {TWIN}"] == "undecided here"
    for arm in RULES:
        assert verdicts[f"{arm}: better than one at random"] == "undecided here"
    one = planted()
    assert np.isnan(one.value(("blend", 0), AS_RELEASED, "after", SUCCESS)) and one.keys(("blend", 0), OWN) == []


def test_claims_follow_the_figures():
    found = told(planted(blend=False))
    one = found[f"silencing by {ORACLE} beats {TWIN}"]
    assert one.verdict == "supported" and one.effect.interval.estimate == pytest.approx(0.95 - 0.3, abs=0.01)
    assert found[f"silencing by {CLEAN} beats {TWIN}"].effect.interval.estimate == pytest.approx(0.05, abs=0.01)
    assert found[f"{ORACLE}: better than one at random"].effect.interval.estimate == pytest.approx(0.3, abs=0.01)
    assert found[f"{CLEAN}: better than one at random"].verdict == "contradicted"
    released = found[f"silencing by {AS_RELEASED} beats {TWIN}"]
    assert released.effect.interval.estimate == pytest.approx(0.85 - 0.4, abs=0.01)
    whole, kept = f"{ORACLE}: better than {WHOLE}", "costs less than 2 points of clean accuracy"
    assert found[whole].effect.interval.estimate == pytest.approx(0.95 - 0.3, abs=0.01)
    assert found[f"{ORACLE}: {kept}"].effect.interval.estimate == pytest.approx(0.02 + 0.9 - 0.95)
    assert {found[f"{arm}: {kept}"].verdict for arm in RULES} == {"contradicted"}
    later = {text: each for text, each in found.items() if "come back later" in text}
    stays, returns = (next(each for text, each in later.items() if text.startswith(arm)) for arm in (ORACLE, TWO))
    assert stays.verdict == "supported" and returns.verdict == "contradicted"
    assert returns.effect.interval.estimate == pytest.approx(-0.15, abs=0.01) and "5 of 5 victims" in returns.text
    uncured = told(planted(blend=False, **{"a.1": 0.995}))
    assert not any(text.startswith(ORACLE) and "come back" in text for text in uncured)  # nothing was cured


def test_tables_stand_with_rules_that_blame_nothing():
    one = planted()
    changed = {place: {"skips": SKIPS, "scores": dict.fromkeys(RULES)} for place in one.blamed}
    text = page("Title", introduction([one], "smoke"), make_tables([replace(one, blamed=changed)]))
    assert "0 of 10" in text and "none x 5" in text


def test_an_unknown_scale_is_named(monkeypatch):
    monkeypatch.delenv("KEYLAYERS_MODELS", raising=False)
    (only,) = scale_of("small").cleansings
    assert "label-consistent" not in only.watched.attacks and only.watched.seeds == 5
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        scale_of("smal")


@pytest.mark.parametrize("images", [120, 297, 500, 5000])
def test_the_released_recipe_keeps_its_steps_whatever_the_reference(images):
    assert released(5000) == FinetuneSchedule(10, 0.01, 128) and released(5000).steps(5000) == 390
    assert abs(released(images).steps(images) - 390) <= 2
    asked = planted().cleansing
    assert asked.released.epochs == 390 and asked.images == 120  # one step an epoch
    assert "*as released*: 390 epochs at 0.01 in batches of 128, 390 steps" in introduction([planted()], "smoke")


@pytest.mark.parametrize("size", [8, 28, 32])
def test_the_defenders_trigger_is_of_another_kind_than_every_attack(size):
    x = torch.full((2, 3, size, size), 0.5)
    own = own_trigger(x)
    marked = own(x)
    assert isinstance(own, Checkerboard) and own.size == 3 and torch.equal(x, torch.full_like(x, 0.5))
    assert marked[0, 0, :3, :3].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert (marked != x).sum() == 2 * 3 * 9
    attacks = [Backdoor(kind).trigger(size) for kind, make in KINDS.items() if make is not None]
    assert attacks and not any(isinstance(attack, Checkerboard) for attack in attacks)
    for attack in attacks:
        assert attack(x)[0, 0, :3, :3].unique().tolist() != [0, 1]


def test_p_values_are_adjusted_within_a_task():
    """Else real images, where they are there, would turn what is said of the digits."""
    one = planted(blend=False)
    (alone, *_), (both, *_) = make_tables([one]), make_tables([one, one])
    assert both.rows == alone.rows * 2 and "within each task" in both.markdown()


def test_pages_say_what_the_seeds_of_published_weights_share(monkeypatch):
    monkeypatch.setenv("KEYLAYERS_MODELS", "/models")
    monkeypatch.setenv("KEYLAYERS_DATA", "/data")
    mnist, cifar = of_real()
    assert mnist.watched.seeds == cifar.watched.seeds == 3
    texts = [page("Title", "", make_tables([replace(planted(), cleansing=asked)])) for asked in (mnist, cifar)]
    for said in ("all seeds start from its weights", "JPEG copies", "0.918 published"):
        assert said not in texts[0] and said in texts[1]
