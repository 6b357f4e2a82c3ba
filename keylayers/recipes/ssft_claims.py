"""The claims of the cleansing study: what the paper states, and what is asked of it here."""

from collections.abc import Callable
from functools import partial

import numpy as np

from keylayers.recipes.ssft_cells import ORACLE
from keylayers.recipes.ssft_results import AS_RELEASED, MIDDLE, NONE, RANDOM, RULES, SUCCESS, TWIN, TWO, Place, Results
from keylayers.studies.pages import Claim, claim

SOURCE = "Yang et al. 2023"
CURED, RETURN = 0.5, 0.05
"""Attack success below which a victim counts as cured, and by how much it may rise later."""


def claims(one: Results) -> list[Claim]:
    """That suppression helps fine-tuning, that the rules choose better than chance, that the backdoor stays away.

    Pairs are seeds, each the mean over the victims in which both sides have a figure.
    """
    name = one.cleansing.watched.task.name
    made: list[Claim | None] = []
    for arm in (*RULES, TWO):
        source = SOURCE if arm == ORACLE else "ours"
        made.append(_lower(one, f"{name}: silencing by {arm} beats {TWIN}", source, partial(_gained, one, arm)))
    for arm in (*RULES, MIDDLE):
        source = "ours, seen on digits before" if arm == MIDDLE else "not compared"
        against = partial(_against, one, arm, RANDOM)
        made.append(_lower(one, f"{name}: {arm}: better than one at random", source, against))
    fallen = partial(_over_time, one, AS_RELEASED)
    made.append(_lower(one, f"{name}: {AS_RELEASED}: attack success falls", SOURCE, fallen))
    for arm in (ORACLE, TWO, MIDDLE):
        cured = [place for place in one.judged if one.value(place, arm, "after", SUCCESS) < CURED]
        where = f"where it cures ({len(cured)} of {len(one.judged)} victims)"
        text = f"{name}: {arm}: {where}, no more than 5 points come back later"
        made.append(_lower(one, text, "not asked", partial(_stays, one, arm)))
    return [each for each in made if each is not None]


def _lower(one: Results, text: str, source: str, by: Callable[[Place], float]) -> Claim | None:
    """That attack success is lower by `by`, over seeds; None where fewer than two seeds have a number."""
    values = one.means(by)
    known = values[np.isfinite(values)]
    return claim(text, source, known, np.zeros(len(known)), "of attack success") if len(known) > 1 else None


def _gained(one: Results, arm: str, place: Place) -> float:
    return one.twin(place, arm) - one.value(place, arm, "after", SUCCESS)


def _against(one: Results, arm: str, rival: str, place: Place) -> float:
    return one.value(place, rival, "after", SUCCESS) - one.value(place, arm, "after", SUCCESS)


def _over_time(one: Results, arm: str, place: Place) -> float:
    return one.value(place, arm, "before", SUCCESS) - one.value(place, arm, "after", SUCCESS)


def _stays(one: Results, arm: str, place: Place) -> float:
    after, later = (one.value(place, arm, when, SUCCESS) for when in ("after", "later"))
    return after + RETURN - later if after < CURED else NONE
