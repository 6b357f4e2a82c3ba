"""The claims of the cleansing study: what the paper states, and what is asked of it here."""

from collections.abc import Callable
from functools import partial

import numpy as np

from keylayers.papers.ssft.cells import ORACLE
from keylayers.papers.ssft.results import (
    AS_RELEASED,
    CLEAN_SHARE,
    MIDDLE,
    NONE,
    RANDOM,
    RULES,
    SUCCESS,
    TWIN,
    TWO,
    WHOLE,
    Place,
    Results,
)
from keylayers.studies.pages import Claim, claim

SOURCE = "Yang et al. 2023"
CURED, RETURN, LOST = 0.5, 0.05, 0.02
"""Attack success below which a victim counts as cured, and by how much it may rise later; clean accuracy that a cure
may cost."""


def list_claims(one: Results) -> list[Claim]:
    """That suppression helps fine-tuning and costs little accuracy, that the rules choose better than chance, that the
    backdoor stays away.

    Pairs are seeds, each the mean over the victims in which both sides have a figure.
    """
    name = one.cleansing.watched.task.name
    made: list[Claim | None] = []
    for arm in (*RULES, TWO, AS_RELEASED):
        source = SOURCE if arm in (ORACLE, AS_RELEASED) else "ours"
        made.append(_lower(one, f"{name}: silencing by {arm} beats {TWIN}", source, partial(_gained, one, arm)))
    for arm in (*RULES, MIDDLE):
        source = "ours, seen on digits before" if arm == MIDDLE else "not compared"
        against = partial(_against, one, arm, RANDOM)
        made.append(_lower(one, f"{name}: {arm}: better than one at random", source, against))
    for arm in RULES:
        made.append(_lower(one, f"{name}: {arm}: better than {WHOLE}", "control", partial(_against, one, arm, WHOLE)))
        kept = f"{name}: {arm}: costs less than {100 * LOST:.0f} points of clean accuracy"
        made.append(_lower(one, kept, SOURCE if arm == ORACLE else "ours", partial(_kept, one, arm), "above that"))
    for arm in (ORACLE, TWO, MIDDLE):
        cured = [place for place in one.judged if one.value(place, arm, "after", SUCCESS) < CURED]
        where = f"where it cures ({len(cured)} of {len(one.judged)} victims)"
        text = f"{name}: {arm}: {where}, no more than 5 points come back later"
        made.append(_lower(one, text, "not asked", partial(_stays, one, arm)))
    return [each for each in made if each is not None]


def _lower(
    one: Results, text: str, source: str, by: Callable[[Place], float], unit: str = "of attack success"
) -> Claim | None:
    """That something is lower by `by`, over seeds; None where fewer than two seeds have a number."""
    values = one.means(by)
    known = values[np.isfinite(values)]
    return claim(text, source, known, np.zeros(len(known)), unit) if len(known) > 1 else None


def _gained(one: Results, arm: str, place: Place) -> float:
    return one.twin(place, arm) - one.value(place, arm, "after", SUCCESS)


def _against(one: Results, arm: str, rival: str, place: Place) -> float:
    return one.value(place, rival, "after", SUCCESS) - one.value(place, arm, "after", SUCCESS)


def _kept(one: Results, arm: str, place: Place) -> float:
    return LOST + one.value(place, arm, "after", CLEAN_SHARE) - one.value(place, arm, "before", CLEAN_SHARE)


def _stays(one: Results, arm: str, place: Place) -> float:
    after, later = (one.value(place, arm, when, SUCCESS) for when in ("after", "later"))
    return after + RETURN - later if after < CURED else NONE
