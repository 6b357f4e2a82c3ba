"""Claims on data-oblivious layers have the sign of what was planted, whichever way it was planted."""

import numpy as np
import pytest

from keylayers.papers.data_oblivious.block_sets import CRITICAL, LEAST, MIXED, OTHERS
from keylayers.papers.data_oblivious.block_training import NONE, Defended, Removed
from keylayers.papers.data_oblivious.claims import keeps_out, terser, where_needed
from keylayers.papers.data_oblivious.plan import Base, task
from keylayers.papers.data_oblivious.profiles import Profiled, Start
from keylayers.papers.data_oblivious.study import Study
from keylayers.papers.data_oblivious.tables import defence_table, introduction, removal_table, trigger_table

BASE = Base("tiny", task("bundled:llama", "bundled:formal"), (), ())
BUMP = np.exp(-0.5 * (np.arange(8) - 2.3) ** 2)
JITTER = (0.0, 0.01, -0.01, 0.02)


def profiled(kind: str, sign: float) -> Profiled:
    """A start whose tuning is needed where its representation changes (sign 1), or where it does not (-1)."""
    losses = {"domain": (sign * BUMP, 2 * sign * BUMP)}
    return Profiled(Start(BASE, kind, "m"), {"CKA": {"a": BUMP, "b": BUMP + 1}}, {"5 blocks": losses})


@pytest.mark.parametrize(("sign", "verdict"), [(1.0, "supported"), (-1.0, "contradicted")])
def test_tuning_needed_at_the_change_supports_the_claim_and_elsewhere_contradicts_it(sign, verdict):
    (one,) = where_needed([profiled("tuned", sign)] * 3)
    assert one.text.startswith("tuned starts, 3 models") and one.verdict == verdict
    assert one.effect.interval.estimate == pytest.approx(sign, abs=0.5) and sign * one.effect.interval.estimate > 0.3


@pytest.mark.parametrize(("before", "after", "sign"), [(-1.0, 1.0, 1), (1.0, -1.0, -1)])
def test_a_correlation_that_is_higher_from_a_tuned_start_supports_that_it_is(before, after, sign):
    found = [one for _ in range(3) for one in (profiled("base", before), profiled("tuned", after))]
    claim = where_needed(found)[-1]
    assert claim.text == "the correlation is higher from a tuned start than from its base"
    assert sign * claim.effect.interval.estimate > 0.5


def defended(arms: dict[str, dict[str, float]], failing: float = 0.1) -> Defended:
    """Two triggers that work with nothing frozen, and one that does not.

    Each arm's measures have a jitter by seed that differs between arms.
    """

    def seeds(shift: int, figures: dict[str, float]) -> tuple[dict[str, float], ...]:
        return tuple({key: value + JITTER[(seed + shift) % 4] for key, value in figures.items()} for seed in range(4))

    tuned = {trigger: {arm: seeds(at, one) for at, (arm, one) in enumerate(arms.items())} for trigger in ("x", "y")}
    tuned["z"] = {arm: seeds(at, {**one, "attack": failing}) for at, (arm, one) in enumerate(arms.items())}
    blocks = {arm: ((0, 1),) for arm in arms if arm != NONE}
    start = Start(BASE, "base", "m")
    return Defended(
        start, BASE.teach, 2, {name: {"test": 3.0} for name in tuned}, blocks, tuned, dict.fromkeys(arms, 0.1)
    )


@pytest.mark.parametrize("others", [OTHERS, MIXED])
@pytest.mark.parametrize(("better", "verdict"), [(True, "supported"), (False, "contradicted")])
def test_what_is_kept_out_and_what_is_learnt_have_the_right_sign(others, better, verdict):
    good = {"attack": 0.1, "attack_loss": 5.0, "test": 1.0}
    bad = {"attack": 0.9, "attack_loss": 1.0, "test": 2.0}
    arms = {CRITICAL: good if better else bad, **dict.fromkeys((others, LEAST), bad if better else good)}
    one = defended({**arms, NONE: {**bad, "attack": 0.95}})
    found = [each for each in keeps_out([one]) if not each.text.endswith(f"against {NONE}")]
    assert one.judged == ["x", "y"] and len(found) == 5 and {one.verdict for one in found} == {verdict}
    sizes = [abs(one.effect.interval.estimate) for one in found]
    assert sizes == pytest.approx([0.8, 4.0, 0.8, 4.0, 1.0], abs=0.02)
    assert found[-1].text == f"tiny, base, 2 frozen: more of the task is learnt than with {others} frozen"


def test_a_defence_against_attacks_that_fail_is_not_judged():
    figures = {"attack": 0.3, "attack_loss": 5.0, "test": 1.0, "exact": 0.5, "recovered": 0.1, "false": 0.0}
    one = defended(dict.fromkeys((CRITICAL, OTHERS, LEAST, NONE), figures))
    assert one.judged == [] and keeps_out([one]) == [] and defence_table(one).rows == ()
    assert "their attack fails with nothing frozen: x, y, z" in defence_table(one).notes[0]
    assert [row[0] for row in trigger_table(one).rows] == ["x (not judged)", "y (not judged)", "z (not judged)"]


def test_the_table_of_a_defence_has_its_effectiveness_against_nothing_frozen():
    shared = {"attack_loss": 5.0, "test": 1.0, "recovered": 0.1, "false": 0.0}
    none, half = ({"attack": attack, "exact": exact, **shared} for attack, exact in ((0.95, 0.9), (0.55, 0.8)))
    table = defence_table(defended({CRITICAL: half, OTHERS: none, LEAST: none, NONE: none}))
    assert {row[0]: row[-1] for row in table.rows} == {CRITICAL: "0.650", OTHERS: "0.500", LEAST: "0.500", NONE: ""}
    unable = {**none, "exact": 0.0}  # nothing could fall, so no cost could show
    table = defence_table(defended({CRITICAL: {**unable, "attack": 0.5}, OTHERS: unable, LEAST: unable, NONE: unable}))
    assert {row[-1] for row in table.rows} == {""}


@pytest.mark.parametrize(("words", "verdict"), [(3, "supported"), (30, "contradicted")])
def test_answers_that_are_shorter_than_under_the_control_support_terseness(words, verdict):
    def answers(mean: float) -> dict:
        said = [mean, mean + 1, mean, mean + 2]
        return {"words": said, "right_words": said, "exact": 0, "ending": 0, "share": 0.5, "first": "", "directions": 5}

    ways = {"stored": answers(words), "projected": answers(10), "random": answers(10.2)}
    ways["random"]["words"] = [10.0, 10.4, 11.2, 11.6]
    found = {("most critical", count, way): one for count in (1, 3) for way, one in ways.items()}
    removed = Removed(Start(BASE, "base", "m"), BASE.teach, answers(10), {"most critical": 4}, found)
    (claim,) = terser([removed])
    assert claim.verdict == verdict and "top 3 at block 4" in claim.text
    assert claim.effect.interval.estimate == pytest.approx(10.8 - words - 0.75)
    assert len(removal_table(removed).rows) == 7


def test_the_introduction_speaks_of_what_the_study_has():
    plain = introduction(Study((profiled("base", 1.0),)), "x")
    assert "shown beside" not in plain and "triggers" not in plain
    arms = {arm: {"attack": 0.1, "attack_loss": 5.0, "test": 1.0} for arm in (CRITICAL, OTHERS, LEAST, NONE)}
    one = Profiled(Start(BASE, "base", "m"), {"CKA, as released": {"a": BUMP}}, {})
    told = introduction(Study((one,), defended=(defended(arms),)), "x")
    assert "(its own form is shown beside)" in told and "other triggers than the paper has: x, y, z." in told
