"""The tables of the screening study, beside what the paper states."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keylayers.recipes.lfa import ANY, Results
from keylayers.recipes.lfa_cells import ALPHA, ENTERING, EVERY, LAST, LEAST, OURS, PUBLISHED, TAU
from keylayers.studies.pages import Claim, Table, adjusted, claim, difference, ledger, plus_minus

ARMS = (OURS, ENTERING, PUBLISHED, LAST, EVERY, LEAST, ANY)
SOURCE = "Jebreel et al. 2023"
PAPER = "input-aware attack, CIFAR-10, ResNet-18: TPR 99.5 % at FPR 1.2 % (tau = 2.5)"


def introduction(found: Sequence[Results], scale: str) -> str:
    """What was done, and what differs from the paper."""
    tasks = ", ".join(f"{one.watched.task.name} ({one.watched.seeds} seeds)" for one in found)
    published = [one.watched.task.name for one in found if one.watched.task.held_from_test]
    held = "" if not published else (
        f" The network of {', '.join(published)} came trained: reference and calibration images are of that data's own "
        "test part."
    )  # fmt: skip
    return (
        f"Made by `keylayers reproduce lfa --scale {scale}`. Images: {tasks}. A model is trained on data of which an "
        "attacker changed a part; a screen is fitted on clean reference images, its threshold on other clean ones, "
        "and it is judged on test images with and without the trigger, which it never saw. Four parts share no image. "
        "Triggered images of the target's own class are left out; an attack that succeeds on less than 90 % of the "
        "others is not judged.\n\n"
        "What differs from the paper: small networks and images; centroids of the other records of a class, weights "
        "per class (the released code gives every class those of the last), negative weights set to 0; thresholds also "
        f"by a conformal quantile that promises at most {ALPHA:.0%} of false alarms. *As published* keeps the released "
        "weights and centroids (predicted classes, each record part of its own), but not the released list of layers, "
        f"which has the stem and the logits, too: here they are the blocks.{held} The paper's figure: {PAPER}."
    )


def tables(found: Sequence[Results]) -> list[Table]:
    """Claims first, then every task."""
    made = [ledger(adjusted([one for results in found for one in claims(results)]))]
    for one in found:
        made += [arms_table(one), attacks_table(one), blocks_table(one), victims_table(one)]
    return made


def claims(one: Results) -> list[Claim]:
    """That the layers of interest find more than other choices; that the promised rate of false alarms holds. Pairs are
    seeds, each the mean over attacks."""
    name, area = one.watched.task.name, "auroc"
    ours = one.over_attacks(OURS, area)
    made = [
        claim(f"{name}: layers of interest beat {rival}", source, -one.over_attacks(rival, area), -ours, "of AUROC")
        for rival, source in ((LAST, SOURCE), (PUBLISHED, "ours"), (EVERY, "not compared"), (ANY, "not compared"),
                              (LEAST, "not compared"))
    ]  # fmt: skip
    alarms = one.over_attacks(OURS, "fpr, conformal")
    text = f"{name}: the conformal threshold flags fewer clean images than promised"
    return [*made, claim(text, "ours", np.full(len(alarms), ALPHA), alarms, "of images")]


def arms_table(one: Results) -> Table:
    """Every choice of layers, over all attacks that worked."""
    rows = []
    for arm in ARMS:
        area = one.over_attacks(arm, "auroc")
        rates = (f"{one.over_attacks(arm, what).mean():.3f}" for what in _RATES)
        against = "" if arm == ANY else difference(area, one.over_attacks(ANY, "auroc"))
        clean = f"{one.values(arm, 'auroc', None).mean():.3f}"
        rows.append((arm, plus_minus(area), against, *rates, clean))
    columns = (
        "layers", "AUROC", "minus any one block", "TPR at FPR 1 %", "TPR at 5 %", f"TPR, tau {TAU}", f"FPR, tau {TAU}",
        "TPR, conformal", "FPR, conformal", "AUROC, clean model",
    )  # fmt: skip
    notes = (
        f"Attacks: {', '.join(one.attacks)}; ± 95 % over seeds, each the mean over attacks. *Clean model*: images with "
        "a patch in a model that no one attacked, where nothing but the trigger's look can be told.",
    )
    return Table(f"{one.watched.task.name}: which layers find poisoned images", columns, tuple(rows), notes)


_RATES = ("tpr at 0.01", "tpr at 0.05", "tpr, tau", "fpr, tau", "tpr, conformal", "fpr, conformal")


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
    alone = [name for name in one.screened[None][0]["arms"] if name.endswith("alone")]
    rows = [
        (attack or "clean model", *(f"{one.values(name, 'auroc', attack).mean():.3f}" for name in alone))
        for attack in (*one.attacks, None)
    ]
    return Table(f"{one.watched.task.name}: AUROC of each block alone", ("attack", *alone), tuple(rows))


def victims_table(one: Results) -> Table:
    """The models and whether the attacks work."""
    rows = [("none", f"{np.mean([each['accuracy'] for each in one.victims[None]]):.3f}", "", "")]
    for attack in one.watched.attacks:
        figures = [each["figures"] for each in one.victims[attack]]
        success = [each["attack_success_rate"][0] for each in figures]
        clean = np.mean([each["clean_accuracy"][0] for each in figures])
        rows.append((attack, f"{clean:.3f}", f"{np.mean(success):.3f}", f"{min(success):.3f}"))
    columns = ("attack", "clean accuracy", "attack success", "worst seed")
    return Table(f"{one.watched.task.name}: the models", columns, tuple(rows))


def plain(found: Sequence[Results]) -> dict[str, Any]:
    """Everything measured, as JSON."""
    return {
        one.watched.task.name: {
            "task": one.watched.task.fields(),
            "attacks": {name: vars(attack) for name, attack in one.watched.attacks.items()},
            "victims": {str(name): list(each) for name, each in one.victims.items()},
            "screened": {str(name): list(each) for name, each in one.screened.items()},
        }
        for one in found
    }
