"""The tables of the cleansing study, beside what the paper states."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from keylayers.measures.backdoor import LEAST_SUCCESS
from keylayers.papers.ssft.cells import CLEAN, DIVERGED, LATER, ORACLE, OWN, FinetuneSchedule, best, diverged
from keylayers.papers.ssft.claims import CURED, list_claims
from keylayers.papers.ssft.results import (
    AS_RELEASED,
    CLEAN_SHARE,
    HINDSIGHT,
    MIDDLE,
    RANDOM,
    RULES,
    SUCCESS,
    TWIN,
    TWO,
    WHOLE,
    Results,
    mean,
)
from keylayers.studies.image_task import caveats
from keylayers.studies.pages import Table, adjusted, ledger, plus_minus

ARMS = (*RULES, TWO, MIDDLE, RANDOM, HINDSIGHT, AS_RELEASED, WHOLE)
RECOVERED = "recovered_accuracy"


def introduction(found: Sequence[Results], scale: str) -> str:
    """What was done, and what differs from the paper."""
    tasks = ", ".join(str(one.cleansing.watched) for one in found)
    longs = "; ".join(
        f"{one.cleansing.watched.task.name}: {_long(one, one.cleansing.recipe)}; *as released*: "
        f"{_long(one, one.cleansing.released)}"
        for one in found
    )
    return (
        f"Made by `keylayers reproduce ssft --scale {scale}`. Images: {tasks}. A *victim* is a model with a "
        "backdoor. It is cleansed with clean reference images and nothing else: one skip connection is silenced, its "
        "stage is fine-tuned around it. The judge, who alone holds the trigger, measures before, after, and after a "
        "further clean fine-tuning by someone else (*later*), on images that no defence saw. A victim is *cured* "
        "where attack "
        f"success falls below {CURED:g}.\n\n"
        f"**`{ORACLE}` is an oracle**: the released code chooses the skip with the attacker's own trigger. What a "
        f"defender can do: plant a trigger of his own in a copy (`{OWN}`: a checkerboard in a corner, unlike every "
        f"attack here, since he cannot know the attacker's), or see clean accuracy (`{CLEAN}`, ours). "
        f"`{TWO}` silences one alone where no second is blamed (a score above 0).\n\n"
        f"Fine-tuning on reference images: {longs}. The released code tunes for 10 epochs on 5,000 images; its steps, "
        "not its epochs, are kept. *Later*: "
        f"{LATER.epochs} epochs at {LATER.learning_rate:g} on calibration images, what "
        "is suppressed staying so. All rates rise and fall as half a cosine. The paper tunes on half "
        "of the test images and states that attack success drops significantly; no figure of its tables is quoted."
    )


def _long(one: Results, recipe: FinetuneSchedule) -> str:
    steps = recipe.steps(one.cleansing.images)
    return f"{recipe.epochs} epochs at {recipe.learning_rate:g} in batches of {recipe.batch_size}, {steps} steps"


def make_tables(found: Sequence[Results]) -> list[Table]:
    """Claims first, then every task; of one in which no attack works, how far each got."""
    each = [claim for one in found for claim in adjusted(list_claims(one))]
    made = [ledger(each, note="P-values are adjusted within each task.")]
    for one in found:
        shown = (arms_table, skips_table, attacks_table, choices_table) if one.judged else (attacks_table,)
        made += [make(one) for make in shown]
    return made


def arms_table(one: Results) -> Table:
    """Every way of choosing, over the victims in which it does something."""
    rows = []
    for arm in ARMS:
        known, broken = [place for place in one.judged if one.known(place, arm)], _broken(one, arm)
        if not known:
            rows.append((arm, *[""] * 7, f"0 of {len(one.judged)}{broken}"))
            continue
        after, later, clean, before = (
            one.per_seed(arm, when, what)
            for when, what in (
                ("after", SUCCESS), ("later", SUCCESS), ("after", CLEAN_SHARE), ("before", CLEAN_SHARE)
            )
        )  # fmt: skip
        rows.append(
            (
                arm, _spread(after), _mean(one.means(partial(one.twin, arm=arm))),
                f"{max(one.value(p, arm, 'after', SUCCESS) for p in known):.3f}",
                _mean(one.per_seed(arm, "after", RECOVERED)), _mean(clean - before, "+"),
                _mean(one.means(partial(one.cost, arm=arm)), "+"), _mean(later),
                f"{len(known)} of {len(one.judged)}{broken}",
            )
        )  # fmt: skip
    columns = (
        "skip silenced", "attack success after", TWIN, "worst victim", "recovered accuracy", "clean accuracy, change",
        "of an unattacked model", "attack success later", "victims",
    )  # fmt: skip
    start = mean([one.success[attack][seed] or 0.0 for attack, seed in one.judged])
    notes = (
        f"Before: attack success {start:.3f}. All but the worst are means over seeds (± 95 %), each the mean over the "
        "victims in which the arm does something: rows of fewer victims are of others than rows of all. *Best in "
        "hindsight* takes for every victim the skip that worked best, which no one can know: a bound. *Worst victim*: "
        f"of the means over skips where an arm is one (`{MIDDLE}`, `{RANDOM}`).",
        *_notes(one),
    )
    return Table(f"{one.cleansing.watched.task.name}: which skip to silence", columns, tuple(rows), notes)


def _broken(one: Results, arm: str) -> str:
    count = sum(one.diverged(place, arm) for place in one.judged)
    return f"; diverged: {count}" if count else ""


def _notes(one: Results) -> list[str]:
    """What is to be known of one task: trainings that are in no mean, published weights."""
    task, made = one.cleansing.watched.task, []
    judged, costs = ([each for each in found.values() if diverged(each)] for found in (one.outcomes, one.costs))
    if judged or costs:
        made.append(
            f"*Diverged*: {len(judged)} of {len(one.outcomes)} trainings of victims and {len(costs)} of "
            f"{len(one.costs)} of unattacked models broke off, the loss being no finite number; they are in no mean."
        )
    return [*made, *filter(None, [caveats(task)])]


def _spread(values: np.ndarray) -> str:
    known = values[np.isfinite(values)]
    return plus_minus(known) if len(known) > 1 else _mean(known)


def _mean(values: np.ndarray, sign: str = "") -> str:
    """Over seeds; nothing where none has a number."""
    return f"{mean(values):{sign}.3f}" if np.isfinite(values).any() else ""


def skips_table(one: Results) -> Table:
    """Every skip by itself, and its stage without suppression, of which nothing later is known."""
    rows = []
    for skip, stage in zip(one.skips, one.stages, strict=True):
        rows.append(
            (
                skip,
                *(_mean(one.per_seed(arm, "after", SUCCESS)) for arm in (skip, f"{stage} alone")),
                *(_mean(one.per_seed(skip, "after", SUCCESS, attack)) for attack in _attacks(one)),
                _mean(one.per_seed(skip, "later", SUCCESS)),
                _mean(one.per_seed(skip, "after", CLEAN_SHARE)),
            )
        )
    columns = ("skip", "silenced", "its stage tuned alone", *_attacks(one), "later", "clean accuracy")
    notes = ("Attack success after fine-tuning; by attack where the skip is silenced.",)
    return Table(f"{one.cleansing.watched.task.name}: every skip", columns, tuple(rows), notes)


def attacks_table(one: Results) -> Table:
    """Attack by attack; of one whose victim diverged, no success is known."""
    rows, name, arms = [], one.cleansing.watched.task.name, ARMS if one.judged else ()
    for attack, success in one.success.items():
        judged = [place for place in one.judged if place[0] == attack]
        known = [value for value in success if value is not None]
        lost = f"; diverged: {len(success) - len(known)}" if len(known) < len(success) else ""
        cells = [_mean(np.array([one.value(place, arm, "after", SUCCESS) for place in judged])) for arm in arms]
        rows.append((attack, _mean(np.array(known)), f"{len(judged)} of {len(success)}{lost}", *cells))
    columns = ("attack", "before", "seeds in which it works", *arms)
    if one.judged:
        return Table(f"{name}: attack success after, by attack", columns, tuple(rows))
    notes = (
        f"No attack worked: none reaches a success of {LEAST_SUCCESS:g} in any seed, so that no defence is judged.",
        *_notes(one),
    )
    return Table(f"{name}: attack success before", columns, tuple(rows), notes)


def choices_table(one: Results) -> Table:
    """Which skip each rule blames."""
    rows = []
    for attack in _attacks(one):
        found = [one.blamed[place] for place in one.judged if place[0] == attack]
        cells = []
        for rule in RULES:
            counted = Counter(_choice(one, each, rule) for each in found)
            cells.append(", ".join(f"{skip} x {count}" for skip, count in counted.most_common()))
        rows.append((attack, *cells))
    notes = (
        "*None*: the trigger could not be planted, or survives every single skip. *Diverged*: planting it broke off.",
    )
    return Table(f"{one.cleansing.watched.task.name}: which skip is blamed", ("attack", *RULES), tuple(rows), notes)


def _choice(one: Results, found: Mapping[str, Any], rule: str) -> str:
    if rule in found.get(DIVERGED, {}):
        return "diverged"
    scores = found["scores"][rule]
    return "none" if scores is None else one.skips[best(scores)[0]]


def _attacks(one: Results) -> list[str]:
    return list(dict.fromkeys(attack for attack, _ in one.judged))


def to_json(found: Sequence[Results]) -> dict[str, Any]:
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
