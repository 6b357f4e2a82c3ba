"""What the study of layers for mathematics claims, each with an interval that knows which seeds its pairs share."""

import math
from collections.abc import Sequence
from statistics import fmean

from keylayers.measures import Interval, PairedDifference, detectable_difference
from keylayers.measures.intervals import jackknife
from keylayers.recipes.math_layers import BASE, Study
from keylayers.recipes.math_layers_answers import (
    Contrast,
    Values,
    alike,
    contrasts,
    damage,
    elbow_distances,
    extra_loss,
    over_seeds,
)
from keylayers.recipes.math_layers_probes import RECALL, STEP
from keylayers.studies.pages import Claim

PAPER, OURS = "Nepal et al.", "ours"


def shared_claim(text: str, source: str, values: Values, unit: str) -> Claim:
    """That the mean of measurements which share seeds (or bases) is above 0; its p-value is of this claim alone."""
    interval = jackknife([value for value, _ in values], [members for _, members in values])
    count = len(dict.fromkeys(one for _, members in values for one in members))
    return Claim(text, source, _effect(interval, count), unit, _effect(interval, count).p_value)


def _effect(interval: Interval, count: int) -> PairedDifference:
    """A jackknifed interval as what a paired test of so many repeats gives; undecided where it is unbounded."""
    from scipy import stats

    if not math.isfinite(interval.high):
        return PairedDifference(interval, 1.0, math.inf, count)
    error = (interval.high - interval.low) / 2 / float(stats.t.ppf(0.5 + interval.level / 2, count - 1))
    if error <= 0:
        return PairedDifference(interval, float(interval.estimate == 0), 0.0, count)
    p_value = float(2 * stats.t.sf(abs(interval.estimate) / error, count - 1))
    return PairedDifference(interval, p_value, detectable_difference(error * math.sqrt(count), count), count)


def core_claims(study: Study) -> list[Claim]:
    """Are a base and its variants more alike than bases that never met? Over seeds, over bases, and by variant."""
    unit, text = "of correlation", "a base and its variants order blocks more alike than two bases do"
    found = []
    for what, measured in (("loss", "loss of steps"), ("exact", "right steps")):
        each = contrasts(study, what)
        found.append(shared_claim(f"{text}, by {measured}", PAPER, by_seeds(each), unit))
        found.append(shared_claim(f"the same, over bases ({len(study.scale.bases)})", OURS, by_bases(each), unit))
    each = contrasts(study)
    for kind in dict.fromkeys(kind for _, kind in study.judged):
        values = by_seeds([one for one in each if kind in one.kept], (kind,))
        found.append(shared_claim(f"the {kind} variants alone, by loss of steps", PAPER, values, unit))
    each = contrasts(study, probe=RECALL)
    return [*found, shared_claim(f"{text}, by loss of recall", OURS, by_seeds(each), unit)]


def further_claims(study: Study) -> list[Claim]:
    """Arithmetic against recall at equal answer length, and the elbow of the cluster curve."""
    groups = {"bases": [(base, BASE) for base in study.scale.bases], "variants": list(study.judged)}
    found = []
    for name, models in groups.items():
        if not models:
            continue
        for what, unit in (("exact", "of answers"), ("loss", "nats")):
            losing = {"exact": "right answers", "loss": "loss"}[what]
            values = extra_loss(study, models, what)
            found.append(
                shared_claim(
                    f"{name}: without arithmetic's blocks steps lose more than recall, {losing}", PAPER, values, unit
                )
            )
            values = extra_loss(study, models, what, RECALL, RECALL, STEP)
            found.append(
                shared_claim(
                    f"{name}: without recall's blocks recall loses more than steps, {losing}", OURS, values, unit
                )
            )

            def mean_extra(s: int, t: int, models: Sequence = models, what: str = what) -> float:
                return fmean(
                    float((damage(study, (model, s), STEP, what) - damage(study, (model, t), RECALL, what)).mean())
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
