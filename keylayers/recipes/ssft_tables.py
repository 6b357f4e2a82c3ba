"""The tables of the cleansing study, beside what the paper states."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from keylayers.recipes.ssft import (
    ALONE,
    AS_RELEASED,
    HINDSIGHT,
    MIDDLE,
    RANDOM,
    RULES,
    TWO,
    WHOLE,
    Results,
)
from keylayers.recipes.ssft_cells import CLEAN, ORACLE, OWN, RELEASED, best
from keylayers.studies.pages import Claim, Table, adjusted, claim, ledger, plus_minus

ARMS = (*RULES, TWO, MIDDLE, RANDOM, HINDSIGHT, AS_RELEASED, ALONE, WHOLE)
SUCCESS, CLEAN_SHARE, RECOVERED = "attack_success_rate", "clean_accuracy", "recovered_accuracy"
SOURCE = "Yang et al. 2023"


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
        f"first task); *as released*: {RELEASED.epochs} epochs at {RELEASED.learning_rate:g}. The paper tunes on half "
        "of the test images and states that attack success drops significantly; no figure of its tables is quoted."
    )


def tables(found: Sequence[Results]) -> list[Table]:
    """Claims first, then every task."""
    made = [ledger(adjusted([one for results in found for one in claims(results)]))]
    for one in found:
        made += [arms_table(one), skips_table(one), attacks_table(one), choices_table(one)]
    return made


def claims(one: Results) -> list[Claim]:
    """That suppression helps fine-tuning, that the rules choose better than chance, that the backdoor stays away."""
    name, made = one.cleansing.watched.task.name, []

    def lower(text: str, source: str, worse: str, better: str, stage: str = "after") -> None:
        first, second = (one.per_seed(arm, stage, SUCCESS) for arm in (worse, better))
        known = np.isfinite(first) & np.isfinite(second)
        if known.sum() > 1:
            made.append(claim(f"{name}: {text}", source, first[known], second[known], "of attack success"))

    for rule in RULES:
        lower(f"silencing the skip by {rule} beats fine-tuning alone", SOURCE, ALONE, rule)
        lower(f"the skip by {rule} is better than one at random", SOURCE, RANDOM, rule)
    lower("silencing the two most blamed by an own trigger beats fine-tuning alone", "ours", ALONE, TWO)
    lower("skips of the middle stage are better than one at random", "ours", RANDOM, MIDDLE)
    before, after = one.per_seed(AS_RELEASED, "before", SUCCESS), one.per_seed(AS_RELEASED, "after", SUCCESS)
    made.append(claim(f"{name}: as released, attack success falls", SOURCE, before, after, "of attack success"))
    for arm in (ORACLE, MIDDLE):
        after, later = one.per_seed(arm, "after", SUCCESS), one.per_seed(arm, "later", SUCCESS)
        text = f"{name}: {arm}: the backdoor does not come back later"
        made.append(claim(text, "not asked", after + 0.05, later, "below a return of 5 points"))
    return made


def arms_table(one: Results) -> Table:
    """Every way of choosing, over all attacks."""
    rows = []
    for arm in ARMS:
        after = one.per_seed(arm, "after", SUCCESS)
        if not np.isfinite(after).sum() > 1:
            rows.append((arm, *[""] * 6))
            continue
        clean = one.per_seed(arm, "after", CLEAN_SHARE) - one.per_seed(arm, "before", CLEAN_SHARE)
        every = [one.value(place, arm, "after", SUCCESS) for place in one.judged]
        known = [value for value in every if np.isfinite(value)]
        rows.append(
            (
                arm, plus_minus(after[np.isfinite(after)]), f"{max(known):.3f}",
                f"{np.nanmean(one.per_seed(arm, 'after', RECOVERED)):.3f}", f"{np.nanmean(clean):+.3f}",
                f"{np.nanmean(one.per_seed(arm, 'later', SUCCESS)):.3f}", f"{len(known)} of {len(one.judged)}",
            )
        )  # fmt: skip
    columns = (
        "skip silenced", "attack success after", "worst victim", "recovered accuracy", "clean accuracy, change",
        "attack success later", "victims",
    )  # fmt: skip
    before = np.mean([one.value(place, WHOLE, "before", SUCCESS) for place in one.judged])
    notes = (
        f"Before: attack success {before:.3f}. ± 95 % over seeds, each the mean over attacks. *Best in hindsight* "
        "takes for every victim the skip that worked best, which no one can know: a bound.",
    )
    return Table(f"{one.cleansing.watched.task.name}: which skip to silence", columns, tuple(rows), notes)


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
        cells = (
            [f"{np.nanmean(one.per_seed(arm, 'after', SUCCESS, attack)):.3f}" for arm in ARMS]
            if judged
            else [""] * len(ARMS)
        )
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
                {"attack": attack, "seed": seed, "arm": arm, **found}
                for (attack, seed, arm), found in one.outcomes.items()
            ],
        }
        for one in found
    }
