"""The cleansing study in miniature: every skip judged by who holds the trigger; claims on planted figures."""

import json
from dataclasses import replace

import numpy as np
import pytest

from keylayers.errors import UnknownName
from keylayers.layers.naming import named_layers
from keylayers.recipes.ssft import (
    AS_RELEASED,
    HINDSIGHT,
    MIDDLE,
    RANDOM,
    RULES,
    SUCCESS,
    TWIN,
    TWO,
    WHOLE,
    Cleansing,
    Results,
    Scale,
    reproduce,
    scale_of,
)
from keylayers.recipes.ssft_cells import CLEAN, ORACLE, OWN, Recipe, best
from keylayers.recipes.ssft_tables import CLEAN_SHARE, RECOVERED, claims, introduction, plain, tables
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


def test_every_skip_and_its_control_is_judged_after_and_later(found):
    one, _ = found
    names = [layer.name for layer in named_layers(one.cleansing.watched.task.untrained(0), "skip")]
    assert list(one.skips) == names and one.stages == ("layer1", "layer1", "layer2", "layer2", "layer3", "layer3")
    assert one.judged == [("patch", 0), ("patch", 1)]
    keys = {key for attack, seed, key in one.outcomes if (attack, seed) == ("patch", 0)}
    assert {*names, "layer1 alone", "layer2 alone", "layer3 alone", WHOLE} <= keys
    scores = one.blamed["patch", 0]["scores"]
    assert (TWO in keys) == (scores[OWN] is not None) and (AS_RELEASED in keys) == (scores[ORACLE] is not None)
    for (_, _, key), outcome in one.outcomes.items():
        assert outcome["oracle"] == (key == AS_RELEASED) and {"before", "after", "later"} <= set(outcome["attacked"])
    assert set(one.costs) == {(seed, skip) for seed in (0, 1) for skip in names}
    assert all(each["before"] > 0.8 for each in one.costs.values())


def test_a_finished_study_is_read_back_and_its_page_says_its_figures(found, monkeypatch):
    one, folder = found
    monkeypatch.setattr("keylayers.recipes.ssft_cells.DO", {})
    with open_run(folder, "study", {}) as run:
        (again,) = list(reproduce(Scale((one.cleansing,)), run, processes=1))
    assert json.dumps(plain(again)) == json.dumps(plain([one]))
    text = page("Title", introduction([one], "smoke"), tables([one]))
    assert "is an oracle" in text and f"{one.per_seed(WHOLE, 'after', SUCCESS).mean():.3f} ±" in text


SKIPS, STAGES = ("a.0", "a.1", "b.0"), ("a", "a", "b")


def planted(seeds: int = 5, blend: bool = True, **after: float) -> Results:
    """Victims of two attacks; blend survives everything, and no rule but the clean one blames a skip for it."""
    noise = np.array([0.0, 0.01, -0.01, 0.02, -0.02])
    figures = {"a.0": 0.9, "a.1": 0.3, "b.0": 0.6, "a alone": 0.95, "b alone": 0.9, "a and b alone": 0.9, TWO: 0.2,
               WHOLE: 0.95, AS_RELEASED: 0.4, **after}  # fmt: skip
    blamed, outcomes = {}, {}
    for attack in ("patch", "blend")[: 1 + blend]:
        for seed in range(seeds):
            known = attack == "patch"
            scores = {ORACLE: [0.1, 0.3, 0.0] if known else None, OWN: [0.0, 0.3, 0.2] if known else None,
                      CLEAN: [0.2, 0.1, 0.0]}  # fmt: skip
            blamed[attack, seed] = {"skips": SKIPS, "scores": scores}
            for place, (key, value) in enumerate(figures.items()):
                if not known and key in (TWO, AS_RELEASED, "a and b alone"):
                    continue
                mean = (value if known else 0.99) + noise[(seed + place) % 5] / 10
                share = {SUCCESS: [mean], CLEAN_SHARE: [0.9 if key == "a.1" else 0.7], RECOVERED: [1 - mean]}
                before = {SUCCESS: [1.0], CLEAN_SHARE: [0.95], RECOVERED: [0.0]}
                later = {**share, SUCCESS: [mean + noise[seed] / 10 + (0.2 if key == TWO else 0.0)]}
                outcomes[attack, seed, key] = {"attacked": {"before": before, "after": share, "later": later}}
    costs = {(seed, skip): {"before": 0.98, "after": 0.97} for seed in range(seeds) for skip in SKIPS}
    success = {attack: (1.0,) * seeds for attack, _ in blamed}
    return Results(Cleansing(watched(seeds), Recipe(1, 0.02, 50)), SKIPS, STAGES, success, blamed, outcomes, costs)


def told(one: Results) -> dict:
    return {each.text.partition(": ")[2]: each for each in claims(one)}


def test_arms_are_means_over_their_members_and_the_bound_is_one_skip_throughout():
    one, place = planted(), ("patch", 0)
    values = [one.figure(place, skip, "after", SUCCESS) for skip in SKIPS]
    assert one.value(place, RANDOM, "after", SUCCESS) == pytest.approx(np.mean(values))
    assert one.keys(place, HINDSIGHT) == ["a.1"] and one.value(place, HINDSIGHT, "after", SUCCESS) == min(values)
    assert one.value(place, HINDSIGHT, "after", CLEAN_SHARE) == 0.9  # of that skip, not the worst of any
    assert one.keys(place, MIDDLE) == ["b.0"] and one.keys(place, ORACLE) == ["a.1"] == one.keys(place, OWN)
    assert one.keys(place, TWO) == [TWO] and one.twins(place, TWO) == ["a and b alone"]
    assert one.twins(place, ORACLE) == ["a alone"] and one.twins(place, MIDDLE) == ["b alone"]
    assert best([0.1, 0.3, 0.3]) == (1,) and best([0.1, 0.3, 0.3], 2) == (1, 2)


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
    assert found[f"{AS_RELEASED}: attack success falls"].effect.interval.estimate == pytest.approx(0.6, abs=0.01)
    later = {text: each for text, each in found.items() if "come back later" in text}
    stays, returns = (next(each for text, each in later.items() if text.startswith(arm)) for arm in (ORACLE, TWO))
    assert stays.verdict == "supported" and returns.verdict == "contradicted"
    assert returns.effect.interval.estimate == pytest.approx(-0.15, abs=0.01) and "5 of 5 victims" in returns.text
    uncured = told(planted(blend=False, **{"a.1": 0.995}))
    assert not any(text.startswith(ORACLE) and "come back" in text for text in uncured)  # nothing was cured


def test_tables_stand_with_rules_that_blame_nothing():
    one = planted()
    changed = {place: {"skips": SKIPS, "scores": dict.fromkeys(RULES)} for place in one.blamed}
    text = page("Title", introduction([one], "smoke"), tables([replace(one, blamed=changed)]))
    assert "0 of 10" in text and "none x 5" in text


def test_an_unknown_scale_is_named(monkeypatch):
    monkeypatch.delenv("KEYLAYERS_MODELS", raising=False)
    (only,) = scale_of("small").cleansings
    assert "label-consistent" not in only.watched.attacks and only.watched.seeds == 5
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        scale_of("smal")
