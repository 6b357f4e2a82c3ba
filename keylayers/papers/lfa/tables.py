"""The tables of the screening study, beside what the paper states."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keylayers.measures.backdoor import LEAST_SUCCESS
from keylayers.papers.lfa.cells import ALPHA, ENTERING, EVERY, LAST, LEAST, OURS, PUBLISHED, TAU
from keylayers.papers.lfa.study import ANY, Results
from keylayers.studies.backdoor_tasks import diverged
from keylayers.studies.image_task import caveats
from keylayers.studies.pages import Claim, Table, adjusted, claim, difference, ledger, plus_minus

ARMS = (OURS, ENTERING, PUBLISHED, LAST, EVERY, LEAST, ANY)
SOURCE = "Jebreel et al. 2023"
WEIGHED = (OURS, ENTERING, PUBLISHED)
NEAR = 0.01
"""Of the promised rate, which is met on average over calibrations: with equality but for a rounding."""
RESTATED = (
    "The claim of the conformal threshold was that of fewer alarms than promised until its figures had been seen; a "
    "threshold that meets its promise cannot show that, so that a margin of a point was put in."
)
PAPER = "input-aware attack, CIFAR-10, ResNet-18: TPR 99.5 % at FPR 1.2 % (tau = 2.5)"


def introduction(found: Sequence[Results], scale: str) -> str:
    """What was done, and what differs from the paper."""
    tasks = ", ".join(str(one.watched) for one in found)
    own = [one.watched.task.name for one in found if one.watched.task.held_from_test]
    held = "" if not own else (
        f" Reference and calibration images of {' and '.join(own)} are of that data's own test part, as the test "
        "images are."
    )  # fmt: skip
    held += "".join(f" {told}" for one in found if (told := caveats(one.watched.task)))
    return (
        f"Made by `keylayers reproduce lfa --scale {scale}`. Images: {tasks}. A model is trained on data of which an "
        "attacker changed a part; a screen is fitted on clean reference images, its threshold on other clean ones, "
        "and it is judged on test images with and without the trigger, which it never saw. Four parts share no image. "
        "Triggered images of the target's own class are left out; an attack that succeeds on less than 90 % of the "
        "others is not judged.\n\n"
        "What differs from the paper: small networks and images; centroids of the other records of a class, weights "
        "per class (the released code gives every class those of the last), negative weights set to 0; thresholds also "
        f"by a conformal quantile that promises at most {ALPHA:.0%} of false alarms. *As published* keeps the released "
        "weights, centroids (each record part of its own; of predicted classes where layers are chosen) and list of "
        "layers, which ends in the logits. The released code counts as poisoned only those images on which the "
        "attack succeeds; here all triggered images count, which lowers rates where an attack misses some. The "
        "others choose among blocks alone: a layer weighs by what follows it, so that the last block weighs nothing, "
        "and the layers of interest can be a single block (*layers per class*). What leaves the last block goes to "
        "the output layer: it is the paper's penultimate layer."
        f"{held} The paper's figure: {PAPER}."
    )


def make_tables(found: Sequence[Results]) -> list[Table]:
    """Claims first, then every task."""
    claimed = [one for results in found for one in adjusted(list_claims(results))]
    made = [ledger(claimed, note=f"P-values are adjusted within each task. {RESTATED}")] if claimed else []
    for one in found:
        if one.attacks:
            made += [arms_table(one), choices_table(one), attacks_table(one), blocks_table(one)]
        made.append(victims_table(one))
    return made


def list_claims(one: Results) -> list[Claim]:
    """That the layers of interest find more than other choices; that the promised rate of false alarms holds. Pairs are
    seeds, each the mean over attacks; without an attack that works in two there are none."""
    if not one.attacks:
        return []
    name, area = one.watched.task.name, "auroc"
    ours = one.over_attacks(OURS, area)
    made = [
        claim(f"{name}: layers of interest beat {rival}", source, -one.over_attacks(rival, area), -ours, "of AUROC")
        for rival, source in ((LAST, SOURCE), (PUBLISHED, "ours"), (EVERY, "not compared"), (ANY, "not compared"),
                              (LEAST, "not compared"))
    ]  # fmt: skip
    published = -one.over_attacks(PUBLISHED, area)
    made.append(
        claim(f"{name}: as published beats {LAST}", SOURCE, -one.over_attacks(LAST, area), published, "of AUROC")
    )
    alarms = one.over_attacks(OURS, "fpr, conformal")
    text = f"{name}: the conformal threshold flags as few clean images as promised, to a point"
    return [*made, claim(text, "ours", np.full(len(alarms), ALPHA + NEAR), alarms, "below that")]


def arms_table(one: Results) -> Table:
    """Every choice of layers, over all attacks that worked."""
    rows = []
    for arm in ARMS:
        area = one.over_attacks(arm, "auroc")
        rates = (f"{one.over_attacks(arm, what).mean():.3f}" for what in _RATES)
        against = "" if arm == ANY else difference(area, one.over_attacks(ANY, "auroc"))
        rows.append((arm, _layers(one, arm), plus_minus(area), against, *rates, _mean(one.values(arm, "auroc", None))))
    columns = (
        "layers", "layers per class", "AUROC", "minus any one block", "TPR at FPR 1 %", "TPR at 5 %",
        f"TPR, tau {TAU}", f"FPR, tau {TAU}", "TPR, conformal", "FPR, conformal", "AUROC, clean model",
    )  # fmt: skip
    single = [arm for arm in WEIGHED if all(len(own) == 1 for own in one.weights(arm))]
    alone = f" A single layer with every victim and class: {', '.join(single)}." if single else ""
    notes = (
        f"Attacks: {', '.join(one.attacks)}; ± 95 % over seeds, each the mean over attacks. *Clean model*: images with "
        f"a patch in a model that no one attacked, where nothing but the trigger's look can be told.{alone}",
    )
    return Table(f"{one.watched.task.name}: which layers find poisoned images", columns, tuple(rows), notes)


_RATES = ("tpr at 0.01", "tpr at 0.05", "tpr, tau", "fpr, tau", "tpr, conformal", "fpr, conformal")


def _layers(one: Results, arm: str) -> str:
    """How many an arm weighs, mean over victims and classes."""
    return "1.0" if arm == ANY else f"{np.mean([len(own) for own in one.weights(arm)]):.1f}"


def _mean(values: Sequence[float] | np.ndarray) -> str:
    return f"{np.mean(values):.3f}" if len(values) else ""


def choices_table(one: Results) -> Table:
    """Which layers the classes weigh."""
    layers = next(one.screened[attack][seed]["layers"] for attack in one.attacks for seed in one.judged(attack))
    rows = [(arm, *(f"{np.mean([name in own for own in one.weights(arm)]):.2f}" for name in layers)) for arm in WEIGHED]
    notes = ("Share of classes in which a layer has a weight, over all judged victims; the last is the logits.",)
    return Table(f"{one.watched.task.name}: layers with a weight", ("layers", *layers), tuple(rows), notes)


def attacks_table(one: Results) -> Table:
    """Attack by attack, with the worst seed."""
    rows = []
    for attack in one.attacks:
        cells = []
        for arm in ARMS:
            values = one.values(arm, "auroc", attack)
            cells.append(f"{values.mean():.3f} (worst {values.min():.3f})")
        rows.append((attack, f"{len(one.judged(attack))} of {one.watched.seeds}", *cells))
    columns = ("attack", "seeds in which it works", *ARMS)
    return Table(f"{one.watched.task.name}: AUROC by attack", columns, tuple(rows), ("Failures are part of it.",))


def blocks_table(one: Results) -> Table:
    """Every block alone."""
    rows = [
        (attack or "clean model", *(_mean(one.values(name, "auroc", attack)) for name in one.alone))
        for attack in (*one.attacks, None)
    ]
    return Table(f"{one.watched.task.name}: AUROC of each block alone", ("attack", *one.alone), tuple(rows))


def victims_table(one: Results) -> Table:
    """The models and whether the attacks work."""
    seeds = one.watched.seeds
    clean = [each["accuracy"] for each in one.victims[None] if not diverged(each)]
    rows = [("none", _mean(clean), "", "", "", f"{one.broken(None)} of {seeds}")]
    for attack in one.watched.attacks:
        figures = [each["figures"] for each in one.victims[attack] if not diverged(each)]
        success = [each["attack_success_rate"][0] for each in figures]
        worst = f"{min(success):.3f}" if success else ""
        clean = [each["clean_accuracy"][0] for each in figures]
        works, broken = (f"{count} of {seeds}" for count in (len(one.judged(attack)), one.broken(attack)))
        rows.append((attack, _mean(clean), _mean(success), worst, works, broken))
    columns = ("attack", "clean accuracy", "attack success", "worst seed", "seeds in which it works", "diverged")
    return Table(f"{one.watched.task.name}: the models", columns, tuple(rows), _unjudged(one))


def _unjudged(one: Results) -> tuple[str, ...]:
    """Which attacks are not told of above, and what the figures leave out."""
    notes = []
    missed = [name for name in one.watched.attacks if name not in one.attacks]
    few = f"in two seeds or more (a success of at least {LEAST_SUCCESS:g})"
    if not one.attacks:
        notes.append(f"No attack works {few}, so that no choice of layers is judged and nothing is claimed.")
    elif missed:
        notes.append(f"Not judged, as they do not work {few}: {', '.join(missed)}.")
    if any(map(one.broken, one.victims)):
        notes.append(
            "*Diverged*: seeds in which training broke off, that of the attacked model or of a clean one which the "
            "attack needs; the attack does not work there, and shares are of the other seeds."
        )
    return tuple(notes)


def to_json(found: Sequence[Results]) -> dict[str, Any]:
    """Everything measured, as JSON."""
    return {
        one.watched.task.name: {
            "task": one.watched.task.fields(),
            "attacks": {name: vars(attack) for name, attack in one.watched.attacks.items()},
            "victims": {str(name): list(each) for name, each in one.victims.items()},
            "screened": {
                str(name): {str(seed): found for seed, found in each.items()} for name, each in one.screened.items()
            },
        }
        for one in found
    }
