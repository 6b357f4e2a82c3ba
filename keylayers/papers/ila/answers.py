"""Tables of the ILA study's other questions: how many layers, from how little, for reasoning, from another model."""

from collections.abc import Sequence

import numpy as np

from keylayers.measures.blow_ups import noted, with_rate
from keylayers.papers.ila.early_choice import EARLY, SHORT, WHOLE, EarlyChoiceResults
from keylayers.papers.ila.reasoning import ReasoningResults
from keylayers.papers.ila.share_sweep import ShareSweepResults
from keylayers.papers.ila.transfer import OWN, TransferResults
from keylayers.scores import agreement
from keylayers.studies.pages import Claim, Table, claim, difference, plus_minus
from keylayers.studies.retraining import ALL, RANDOM

TOP = 0.3
"""Share of layers in the sets whose overlap decides whether an early choice is the same choice."""


def sweep_table(swept: ShareSweepResults) -> Table:
    """A row per share: what each arm recovers of the gain of training everything, and how it differs from random."""
    arms = list(dict.fromkeys(arm for arm, _ in swept.losses if arm != ALL))
    rows = []
    for share in sorted({share for _, share in swept.losses} - {1.0}):
        cells = [plus_minus(swept.gains(arm, share)) for arm in arms]
        against = [difference(swept.losses[arm, share], swept.losses[RANDOM, share]) for arm in arms if arm != RANDOM]
        frozen = [difference(swept.losses[arm, share], swept.losses[ALL, 1.0]) for arm in arms if arm != RANDOM]
        rows.append((f"{share:.0%}", *cells, *against, *frozen))
    others = [arm for arm in arms if arm != RANDOM]
    columns = (
        "trained", *(f"gain: {arm}" for arm in arms), *(f"{arm} minus random" for arm in others),
        *(f"{arm} minus all" for arm in others),
    )  # fmt: skip
    where = "on 4-bit weights (through NF4 and back: QLoRA's numbers, not its memory)" if swept.nf4 else "in fp32"
    notes = (
        f"Gain: share of the drop from {swept.before:.3f} to {np.mean(swept.losses[ALL, 1.0]):.3f} nats that training "
        "all layers brings; differences in nats, negative is better; 95 %, paired by seed; rates chosen per arm on "
        "calibration records. The paper freezes about 25 %, tunes 10 to 30 %, and with QLoRA 30 to 75 %.",
        *noted(swept.blew_up),
    )
    return Table(f"How many layers, {swept.task.name}, {where}", columns, tuple(rows), notes)


def sweep_claims(swept: ShareSweepResults) -> list[Claim]:
    """Freezing the worst quarter helps; ILA's best layers beat random ones at every share."""
    arms = list(dict.fromkeys(arm for arm, _ in swept.losses if arm not in (ALL, RANDOM)))
    name = swept.task.name + (", 4-bit" if swept.nf4 else "")
    found = []
    for arm in arms:
        source = "ILA" if arm.startswith("ILA") else "ours"
        for share in sorted({share for one, share in swept.losses if one == arm}):
            best = swept.losses[arm, share]
            if share == 0.75:
                found.append(
                    claim(f"{name}: freezing the worst 25 % by {arm} helps", source, swept.losses[ALL, 1.0], best)
                )
            text = f"{name}: {share:.0%} by {arm} beats random, same size"
            found.append(claim(text, source, swept.losses[RANDOM, share], best))
    return found


def frugal_table(chosen: Sequence[EarlyChoiceResults]) -> Table:
    """Cost, stability and worth of choosing early, beside the whole procedure."""
    rows = []
    for one in chosen:
        full = np.array(one.full_seconds)
        seeds = range(len(full))
        between = [agreement(one.scores[WHOLE][i], one.scores[WHOLE][j], TOP) for i in seeds for j in seeds if i < j]
        for name in one.scores:
            apart = [agreement(one.scores[name][i], one.scores[WHOLE][j], TOP) for i in seeds for j in seeds if i != j]
            pairs = between if name == WHOLE else apart
            loss = one.losses[name]
            rows.append(
                (
                    one.task.name, name, f"{np.mean(np.array(one.seconds[name]) / full):.3f}",
                    f"{np.mean([pair.spearman.value for pair in pairs]):.3f}",
                    f"{np.mean([pair.top.jaccard for pair in pairs]):.3f} ({pairs[0].top.expected:.3f})",
                    plus_minus(loss), difference(loss, one.losses[WHOLE]) if name != WHOLE else "",
                    difference(loss, one.losses[RANDOM]),
                )
            )  # fmt: skip
    columns = (
        "task", "layers chosen by", "cost / one full training", "Spearman with the whole procedure, other seeds",
        "Jaccard, top 30 % (chance)", "loss, retrained", "minus whole procedure", "minus random, same size",
    )  # fmt: skip
    blew_up = {f"{one.task.name}, {arm}": each for one in chosen for arm, each in one.blew_up.items()}
    notes = ("95 %, paired by seed; costs as ratios within one run.", *noted(blew_up))
    return Table("Choosing early", columns, tuple(rows), notes)


def reasoning_table(found: ReasoningResults) -> Table:
    """Loss and right answers of every arm."""
    order = sorted(found.losses, key=lambda arm: -float(np.mean(found.exact[arm])))
    rows = [
        (
            arm, with_rate(found.rates[arm], found.blew_up.get(arm, ())), plus_minus(found.exact[arm]),
            plus_minus(found.losses[arm]),
            "" if arm == RANDOM else difference(found.exact[arm], found.exact[RANDOM]),
        )
        for arm in order
    ]  # fmt: skip
    notes = (
        f"Before tuning: {found.before['exact']:.3f} right, {found.before['test']:.3f} nats. Right: the chain and its "
        "result written exactly by greedy decoding. 30 % of LoRA's parameters; 95 %, paired by seed.",
        *noted(found.blew_up),
    )
    columns = ("layers chosen by", "lr", "right answers", "loss", "right answers minus random, same size")
    return Table(f"Reasoning: {found.task.name}, {found.task.inputs.model}", columns, tuple(rows), notes)


def transfer_table(found: TransferResults) -> Table:
    """Own and carried rankings, their depth and kinds alone, and random sets."""
    rows = [
        (
            arm,
            with_rate(found.rates[arm], found.blew_up.get(arm, ())),
            plus_minus(losses),
            "" if arm == RANDOM else difference(losses, found.losses[RANDOM]),
        )
        for arm, losses in sorted(found.losses.items(), key=lambda pair: float(np.mean(pair[1])))
    ]
    columns = ("ranking of", "lr", "loss, retrained", "minus random, same size")
    notes = (
        f"Before tuning {found.before:.3f} nats; 30 % of LoRA's parameters; 95 %, paired by seed.",
        *noted(found.blew_up),
    )
    return Table(f"Rankings carried over to {found.task.inputs.model}, {found.task.name}", columns, tuple(rows), notes)


def transfer_claims(found: TransferResults) -> list[Claim]:
    """A carried ranking beats chance, its depth alone, its kinds alone; and is worse than the model's own."""
    claims = []
    for source in found.sources:
        best = found.losses[source]
        rivals = {
            "random, same size": RANDOM,
            "its depth alone": f"{source}, depth only",
            "its kinds alone": f"{source}, kind only",
        }
        for words, rival in rivals.items():
            claims.append(claim(f"ranking of {source} beats {words}", "ILA: works, worse", found.losses[rival], best))
        claims.append(claim(f"the own ranking beats that of {source}", "ILA", best, found.losses[OWN]))
    return claims


def frugal_claims(chosen: Sequence[EarlyChoiceResults]) -> list[Claim]:
    """The early choice is worse than the whole procedure's; it beats random."""
    found = []
    for one in chosen:
        name, losses = one.task.name, one.losses
        for way in (one for one in (EARLY, SHORT) if one in losses):
            found.append(claim(f"{name}: {WHOLE} beats {way}", "ours", losses[way], losses[WHOLE]))
            found.append(claim(f"{name}: {way} beats random, same size", "ours", losses[RANDOM], losses[way]))
    return found
