"""What the study of layers for mathematics claims, each with an interval that knows which seeds its pairs share."""

import math
from collections.abc import Sequence
from statistics import fmean

from keylayers.measures import Interval, PairedDifference, detectable_difference
from keylayers.measures.intervals import jackknife
from keylayers.papers.math_layers.analysis import (
    Contrast,
    Values,
    able,
    alike,
    contrasts,
    damage,
    elbow_distances,
    extra_loss,
    lost,
    over_seeds,
)
from keylayers.papers.math_layers.probes import RECALL, STEP
from keylayers.papers.math_layers.study import BASE, Study
from keylayers.studies.pages import Claim

PAPER, OURS = "Nepal et al.", "ours"


def shared_claim(text: str, source: str, values: Values, unit: str) -> Claim:
    """That the mean of measurements which share seeds (or bases) is above 0; its p-value is of this claim alone."""
    interval = jackknife([value for value, _ in values], [members for _, members in values])
    count = len(dict.fromkeys(one for _, members in values for one in members))
    effect = _effect(interval, count)
    return Claim(text, source, effect, unit, effect.p_value)


def _effect(interval: Interval, count: int) -> PairedDifference:
    """A jackknifed interval as what a paired test of so many repeats gives; undecided where it is unbounded."""
    from scipy import stats

    if not math.isfinite(interval.high):
        return PairedDifference(interval, 1.0, math.inf, count)
    error = (interval.high - interval.low) / 2 / float(stats.t.ppf(0.5 + interval.level / 2, count - 1))
    if error <= 1e-12 * abs(interval.estimate):  # equal but for rounding: no more than all of one sign
        return PairedDifference(interval, 2.0 ** (1 - count) if interval.estimate else 1.0, 0.0, count)
    p_value = float(2 * stats.t.sf(abs(interval.estimate) / error, count - 1))
    return PairedDifference(interval, p_value, detectable_difference(error * math.sqrt(count), count), count)


def core_claims(study: Study) -> list[Claim]:
    """Are a base and its variants more alike than bases that never met? Over seeds, over bases, and by variant.

    Bases of one shape come first: against another shape, what is more alike may be the shape.
    """
    unit, text = "of correlation", "a base and its variants order blocks more alike than"
    found, by_loss = [], contrasts(study)

    def add(text: str, source: str, each: Sequence[Contrast], end: str, kinds: Sequence[str] | None = None) -> None:
        nearest = [one for one in each if one.equal] or each
        against = "two bases of one shape" if nearest[0].equal else "two bases of other shapes"
        values = by_seeds(nearest, kinds)
        found.append(shared_claim(f"{text} {against}, {end}, for these bases", source, values, unit))

    for each, measured in ((by_loss, "loss of steps"), (contrasts(study, "exact"), "right steps")):
        add(text, PAPER, each, f"by {measured}")
        shapes = "" if all(one.equal for one in each) else ", also of other shapes"
        if shapes and any(one.equal for one in each):
            found.append(shared_claim(f"the same{shapes}, for these bases", OURS, by_seeds(each), unit))
        over = f"the same, over bases ({len(study.scale.bases)}){shapes}"
        found.append(shared_claim(over, OURS, by_bases(each), unit))
    for kind in dict.fromkeys(kind for _, kind in study.judged):
        some = [one for one in by_loss if kind in one.kept]
        add(f"the {kind} variants alone, against", PAPER, some, "by loss of steps", (kind,))
    add(text, OURS, contrasts(study, probe=RECALL), "by loss of recall")
    return found


def further_claims(study: Study) -> list[Claim]:
    """Arithmetic against recall at equal answer length, and the elbow of the cluster curve."""
    groups = {"bases": [(base, BASE) for base in study.scale.bases], "variants": list(study.judged)}
    found = []
    for name, models in groups.items():
        for what, unit, losing in (("exact", "of right answers", "of their right answers"), ("loss", "nats", "loss")):
            chosen = models if what == "loss" else able(study, models)
            if not chosen:
                continue
            values = extra_loss(study, chosen, what)
            found.append(
                shared_claim(
                    f"{name}: without arithmetic's blocks steps lose more than recall, {losing}", PAPER, values, unit
                )
            )
            values = extra_loss(study, chosen, what, RECALL, RECALL, STEP)
            found.append(
                shared_claim(
                    f"{name}: without recall's blocks recall loses more than steps, {losing}", OURS, values, unit
                )
            )

            def mean_extra(s: int, t: int, models: Sequence = chosen, what: str = what) -> float:
                return fmean(
                    float((lost(study, (model, s), STEP, what) - lost(study, (model, t), RECALL, what)).mean())
                    for model in models
                )

            found.append(
                shared_claim(
                    f"{name}: over all blocks steps lose more than recall, {losing}",
                    PAPER,
                    over_seeds(study, mean_extra),
                    unit,
                )
            )

        if not models:
            continue

        def apart(s: int, t: int, models: Sequence = models) -> float:
            return fmean(
                alike(damage(study, (model, s)), damage(study, (model, t)))
                - alike(damage(study, (model, s)), damage(study, (model, t), RECALL))
                for model in models
            )

        text = f"{name}: steps and recall order blocks less alike than steps do on other records"
        found.append(shared_claim(text, PAPER, over_seeds(study, apart), "of correlation"))
        near = [(chance - distance, seeds) for _, seeds, distance, chance in elbow_distances(study, models)]
        if near:
            text = f"{name}: the elbow of the cluster curve is nearer to critical blocks than a random place"
            found.append(shared_claim(text, PAPER, near, "blocks"))
    return found


def by_seeds(found: Sequence[Contrast], kinds: Sequence[str] | None = None) -> Values:
    """What is more alike, the mean over all pairs of bases, for every two seeds."""
    places = dict.fromkeys(one.seeds for one in found)
    return [(fmean(one.more(kinds) for one in found if one.seeds == seeds), seeds) for seeds in places]


def by_bases(found: Sequence[Contrast]) -> Values:
    """What is more alike, the mean over all seeds, for every two bases."""
    places = dict.fromkeys(one.bases for one in found)
    return [(fmean(one.more() for one in found if one.bases == bases), bases) for bases in places]
