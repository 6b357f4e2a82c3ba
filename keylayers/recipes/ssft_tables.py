"""The tables of the cleansing study, beside what the paper states."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

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
    Place,
    Results,
)
from keylayers.recipes.ssft_cells import CLEAN, LATER, ORACLE, OWN, RELEASED, best
from keylayers.studies.pages import Claim, Table, adjusted, claim, ledger, plus_minus

ARMS = (*RULES, TWO, MIDDLE, RANDOM, HINDSIGHT, AS_RELEASED, WHOLE)
CLEAN_SHARE, RECOVERED = "clean_accuracy", "recovered_accuracy"
SOURCE = "Yang et al. 2023"
CURED, RETURN = 0.5, 0.05
"""Attack success below which a victim counts as cured, and by how much it may rise later."""


def introduction(found: Sequence[Results], scale: str) -> str:
    """What was done, and what differs from the paper."""
    tasks = ", ".join(f"{one.cleansing.watched.task.name} ({one.cleansing.watched.seeds} seeds)" for one in found)
    recipe = found[0].cleansing.recipe
    return (
        f"Made by `keylayers reproduce ssft --scale {scale}`. Images: {tasks}. A backdoored model is cleansed by "
        "who has it and clean reference images alone: one skip connection is silenced, its stage is fine-tuned around "
        "it. Who holds the trigger judges before, after, and after a further clean fine-tuning by someone else "
        "(*later*), on images that no defence saw.\n\n"
        f"**`{ORACLE}` is an oracle**: the released code chooses the skip with the attacker's own trigger. What a "
        f"defender can do: plant a trigger of his own in a copy (`{OWN}`), or see clean accuracy (`{CLEAN}`, ours). "
        f"Fine-tuning: {recipe.epochs} epochs at {recipe.learning_rate:g} in batches of {recipe.batch_size} (on the "
        f"first task); *as released*: {RELEASED.epochs} epochs at {RELEASED.learning_rate:g} in batches of "
        f"{RELEASED.batch_size}; *later*: {LATER.epochs} epochs at {LATER.learning_rate:g} on calibration images, what "
        "is suppressed staying so. All rates rise and fall as half a cosine. The paper tunes on half "
        "of the test images and states that attack success drops significantly; no figure of its tables is quoted."
    )


def tables(found: Sequence[Results]) -> list[Table]:
    """Claims first, then every task."""
    made = [ledger(adjusted([one for results in found for one in claims(results)]))]
    for one in found:
        made += [arms_table(one), skips_table(one), attacks_table(one), choices_table(one)]
    return made


def claims(one: Results) -> list[Claim]:
    """That suppression helps fine-tuning, that the rules choose better than chance, that the backdoor stays away.

    Pairs are seeds, each the mean over the victims in which the arm does something.
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
    twins = [one.figure(place, key, "after", SUCCESS) for key in one.twins(place, arm)]
    return float(np.mean(twins)) - one.value(place, arm, "after", SUCCESS) if twins else float("nan")


def _against(one: Results, arm: str, rival: str, place: Place) -> float:
    return one.value(place, rival, "after", SUCCESS) - one.value(place, arm, "after", SUCCESS)


def _over_time(one: Results, arm: str, place: Place) -> float:
    return one.value(place, arm, "before", SUCCESS) - one.value(place, arm, "after", SUCCESS)


def _stays(one: Results, arm: str, place: Place) -> float:
    after, later = (one.value(place, arm, when, SUCCESS) for when in ("after", "later"))
    return after + RETURN - later if after < CURED else float("nan")


def arms_table(one: Results) -> Table:
    """Every way of choosing, over the victims in which it does something."""
    rows = []
    for arm in ARMS:
        known = [place for place in one.judged if one.keys(place, arm)]
        if not known:
            rows.append((arm, *[""] * 7, f"0 of {len(one.judged)}"))
            continue
        after, later = (one.per_seed(arm, when, SUCCESS) for when in ("after", "later"))
        clean = [one.value(p, arm, "after", CLEAN_SHARE) - one.value(p, arm, "before", CLEAN_SHARE) for p in known]
        twin = [one.figure(p, key, "after", SUCCESS) for p in known for key in _twins(one, p, arm)]
        untouched = [
            one.costs[seed, key]["after"] - one.costs[seed, key]["before"]
            for attack, seed in known
            for key in one.keys((attack, seed), arm)
            if (seed, key) in one.costs
        ]
        rows.append(
            (
                arm, _mean(after), f"{np.mean(twin):.3f}" if twin else "",
                f"{max(one.value(p, arm, 'after', SUCCESS) for p in known):.3f}",
                f"{np.nanmean(one.per_seed(arm, 'after', RECOVERED)):.3f}", f"{np.mean(clean):+.3f}",
                f"{np.mean(untouched):+.3f}" if untouched else "", f"{np.nanmean(later):.3f}",
                f"{len(known)} of {len(one.judged)}",
            )
        )  # fmt: skip
    columns = (
        "skip silenced", "attack success after", TWIN, "worst victim", "recovered accuracy", "clean accuracy, change",
        "of an unattacked model", "attack success later", "victims",
    )  # fmt: skip
    before = np.mean([one.value(place, WHOLE, "before", SUCCESS) for place in one.judged])
    notes = (
        f"Before: attack success {before:.3f}. ± 95 % over seeds, each the mean over the victims in which the arm does "
        "something: rows of fewer victims are of others than rows of all. *Best in hindsight* takes for every victim "
        "the skip that worked best, which no one can know: a bound.",
    )
    return Table(f"{one.cleansing.watched.task.name}: which skip to silence", columns, tuple(rows), notes)


def _twins(one: Results, place: Place, arm: str) -> list[str]:
    return [] if arm in (WHOLE, AS_RELEASED) else one.twins(place, arm)


def _mean(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return plus_minus(known) if len(known) > 1 else f"{known.mean():.3f}"


def skips_table(one: Results) -> Table:
    """Every skip by itself, and its stage without suppression."""
    rows = []
    for skip, stage in zip(one.skips, one.stages, strict=True):
        rows.append(
            (
                skip,
                *(f"{np.nanmean(one.per_seed(arm, 'after', SUCCESS)):.3f}" for arm in (skip, f"{stage} alone")),
                *(f"{np.nanmean(one.per_seed(skip, 'after', SUCCESS, attack)):.3f}" for attack in _attacks(one)),
                f"{np.nanmean(one.per_seed(skip, 'later', SUCCESS)):.3f}",
                f"{np.nanmean(one.per_seed(skip, 'after', CLEAN_SHARE)):.3f}",
            )
        )
    columns = ("skip", "silenced", "its stage tuned alone", *_attacks(one), "later", "clean accuracy")
    notes = ("Attack success after fine-tuning; by attack where the skip is silenced.",)
    return Table(f"{one.cleansing.watched.task.name}: every skip", columns, tuple(rows), notes)


def attacks_table(one: Results) -> Table:
    """Attack by attack."""
    rows = []
    for attack, success in one.success.items():
        judged = [place for place in one.judged if place[0] == attack]
        cells = []
        for arm in ARMS:
            values = [value for place in judged if np.isfinite(value := one.value(place, arm, "after", SUCCESS))]
            cells.append(f"{np.mean(values):.3f}" if values else "")
        rows.append((attack, f"{np.mean(success):.3f}", f"{len(judged)} of {len(success)}", *cells))
    columns = ("attack", "before", "seeds in which it works", *ARMS)
    return Table(f"{one.cleansing.watched.task.name}: attack success after, by attack", columns, tuple(rows))


def choices_table(one: Results) -> Table:
    """Which skip each rule blames."""
    rows = []
    for attack in _attacks(one):
        cells = []
        for rule in RULES:
            scores = [one.blamed[place]["scores"][rule] for place in one.judged if place[0] == attack]
            counted = Counter("none" if each is None else one.skips[best(each)[0]] for each in scores)
            cells.append(", ".join(f"{skip} x {count}" for skip, count in counted.most_common()))
        rows.append((attack, *cells))
    notes = ("*None*: the trigger could not be planted, or survives every single skip.",)
    return Table(f"{one.cleansing.watched.task.name}: which skip is blamed", ("attack", *RULES), tuple(rows), notes)


def _attacks(one: Results) -> list[str]:
    return list(dict.fromkeys(attack for attack, _ in one.judged))


def plain(found: Sequence[Results]) -> dict[str, Any]:
    """Everything measured, as JSON."""
    return {
        one.cleansing.watched.task.name: {
            "task": one.cleansing.watched.task.fields(),
            "attacks": {name: vars(attack) for name, attack in one.cleansing.watched.attacks.items()},
            "recipe": vars(one.cleansing.recipe),
            "success": {name: list(each) for name, each in one.success.items()},
            "blamed": [{"attack": attack, "seed": seed, **found} for (attack, seed), found in one.blamed.items()],
            "outcomes": [
                {"attack": attack, "seed": seed, "key": key, **found}
                for (attack, seed, key), found in one.outcomes.items()
            ],
            "costs": [{"seed": seed, "skip": skip, **found} for (seed, skip), found in one.costs.items()],
        }
        for one in found
    }
