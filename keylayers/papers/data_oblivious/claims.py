"""The claims of the paper on data-oblivious layers, beside its figures, each with what was measured here."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from keylayers.maths.ranks import spearman
from keylayers.maths.shifts import ShiftTest
from keylayers.measures import PairedDifference
from keylayers.measures.intervals import Interval, jackknife, t_interval
from keylayers.papers.data_oblivious.block_sets import CRITICAL, LAST, LEAST, MIXED, OTHERS, others_in
from keylayers.papers.data_oblivious.block_training import NONE, Adapted, Defended, Removed
from keylayers.papers.data_oblivious.profiles import Profiled, pool_models
from keylayers.papers.data_oblivious.study import Study
from keylayers.studies.pages import Claim, claim

SOURCE = "Liu et al. 2025"


def list_claims(study: Study) -> list[Claim]:
    """Every claim that was measured here; a positive effect supports it."""
    return [
        *same_blocks(study.profiled),
        *where_needed(study.profiled),
        *worth_training(study.adapted),
        *keeps_out(study.defended),
        *terser(study.removed),
    ]


def same_blocks(found: Sequence[Profiled]) -> list[Claim]:
    """That profiles of unrelated corpora agree, per start."""
    stated = f"{SOURCE}: profiles look alike"
    return [
        _tested(f"{one.start.name}: the same blocks on every corpus", stated, one.agreement(), _over_corpora(one))
        for one in found
    ]


def where_needed(found: Sequence[Profiled]) -> list[Claim]:
    """That the profile tells where tuning was needed, from a tuned start, over models; and less from a base."""
    made = []
    kinds = {kind: [one for one in found if one.start.kind == kind] for kind in ("tuned", "base")}
    for kind, stated in (("tuned", "-0.51 to -0.97 of CKA"), ("base", "-0.31 to +0.15 of CKA")):
        test = pool_models(found, kind)
        if test is not None:
            values = [one.correlation(one.window).value for one in kinds[kind]]
            text = f"{kind} starts, {len(values)} models: tuning is needed where the representation changes"
            made.append(_tested(text, f"{SOURCE}: {stated}", test, _over(values)))
    pairs = list(zip(kinds["base"], kinds["tuned"], strict=False))
    if len(pairs) > 1:
        before, after = ([one.correlation(one.window).value for one in side] for side in zip(*pairs, strict=True))
        text = "the correlation is higher from a tuned start than from its base"
        made.append(claim(text, f"{SOURCE}: the base model shows none", -np.array(before), -np.array(after), "of rho"))
    return made


def worth_training(found: Sequence[Adapted]) -> list[Claim]:
    """That training the critical blocks beats training as many others: over all domains that can be judged, each from
    every start, and in each of them over seeds."""
    stated, judged = f"{SOURCE}: 1.13 against 1.28; 1.08 against 1.65", [one for one in found if one.judged]
    made = []
    for rival in (MIXED, OTHERS, LEAST, LAST):
        pairs = [one for one in judged if _rivals(one, rival)]
        if len(pairs) > 1:
            ours, theirs = (np.array([one.gains(arm).mean() for one in pairs]) for arm in (CRITICAL, rival))
            text = f"{len(pairs)} domains and starts: critical blocks beat {rival}"
            made.append(claim(text, stated, -theirs, -ours, "of the gain"))
    for one in judged:
        for rival in (others_in(one.blocks), LEAST, LAST):
            if _rivals(one, rival):
                text = f"{one.start.name}, {one.task.name}: critical blocks beat {rival}"
                made.append(claim(text, stated, one.losses(rival), one.losses(CRITICAL)))
    return made


def _rivals(one: Adapted, rival: str) -> bool:
    """Whether the rival was trained there, on other blocks than the critical ones."""
    return rival in one.blocks and one.blocks[rival] != one.blocks[CRITICAL]


def keeps_out(found: Sequence[Defended]) -> list[Claim]:
    """That freezing the critical blocks lowers attack success, more than freezing others, and costs no more.

    Pairs are seeds, each the mean over the triggers whose attack works with nothing frozen: triggers of one seed share
    what the seed does.
    """
    made = []
    for one in (each for each in found if each.judged):
        where, others = f"{one.start.name}, {one.frozen} frozen", others_in(one.blocks)
        for rival, stated in ((NONE, "54.3 % to 17.0 %"), (others, "31.3 % to 17.0 %"), (LEAST, "31.3 % to 17.0 %")):
            for what, unit in (("attack", "of prompts"), ("attack_loss", "nats")):
                ours, theirs = (one.per_seed(arm, what) for arm in (CRITICAL, rival))
                sign = 1.0 if what == "attack" else -1.0
                words = "lowers attack success" if what == "attack" else "raises the loss of the attack's words"
                text = f"{where}: freezing critical blocks {words} against {rival}"
                made.append(claim(text, f"{SOURCE}: {stated}", sign * theirs, sign * ours, unit))
        text = f"{where}: more of the task is learnt than with {others} frozen"
        made.append(claim(text, "not given", one.per_seed(others, "test"), one.per_seed(CRITICAL, "test")))
    return made


def terser(found: Sequence[Removed]) -> list[Claim]:
    """That answers are shorter without top components of the most critical block than without random directions."""
    made = []
    for one in found:
        count = max(count for _, count, _ in one.found)
        label = next(iter(one.places))
        ours, control = (np.array(one.found[label, count, way]["words"], float) for way in ("stored", "random"))
        text = (
            f"{one.start.name}: without its top {count} at block {one.places[label]} answers are shorter than without "
            "random directions"
        )
        made.append(claim(text, f"{SOURCE}: single examples", control, ours, "words"))
    return made


def _tested(text: str, source: str, test: ShiftTest, interval: Interval) -> Claim:
    """A correlation as a claim: its p-value is by shifts, two-sided, whatever the interval."""
    effect = PairedDifference(interval, test.two_sided, test.needed_two_sided, 1)
    return Claim(text, source, effect, "of rho", effect.p_value)


def _over(values: Sequence[float]) -> Interval:
    """Mean over models; of one alone nothing bounds it but what a correlation can be."""
    return t_interval(values) if len(values) > 1 else Interval(values[0], -1.0, 1.0)


def _over_corpora(one: Profiled) -> Interval:
    """Mean over pairs of corpora, which share corpora."""
    shifts = one.shifts[one.way]
    pairs = list(combinations(shifts, 2))
    found = jackknife([spearman(shifts[a], shifts[b]).value for a, b in pairs], pairs)
    return Interval(found.estimate, max(found.low, -1.0), min(found.high, 1.0))
