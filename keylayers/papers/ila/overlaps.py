"""The overlap of rankings as a table: beside chance and the nulls, with intervals, adjusted for all that is tested."""

from collections.abc import Sequence

import numpy as np

from keylayers.maths.stability import harmonic_mean_p, holm
from keylayers.measures.intervals import jackknife
from keylayers.papers.ila.stability import Overlap, across, within
from keylayers.papers.ila.study import TaskResults
from keylayers.scores import agreement
from keylayers.studies.pages import Table

TOP = 0.75
"""Share of layers in the sets whose overlap the paper reports."""

NULLS = ("random", "kind", "depth")
COLUMNS = (
    "question", "of", "scores", "Jaccard, top 75 %", "by chance", "paper", "Kuncheva", "Spearman", "p random",
    "p same kinds", "p along depth",
)  # fmt: skip


def overlap_table(overlaps: Sequence[Overlap]) -> Table:
    """One row per overlap; its p-values are of all its pairs together."""
    found = [[agreement(a, b, TOP) for _, _, a, b in one.pairs] for one in overlaps]
    combined = [
        [harmonic_mean_p(np.array([pair.top.p_value(null) for pair in each])) for null in NULLS] for each in found
    ]
    adjusted = holm(np.array(combined).ravel()).reshape(-1, len(NULLS))
    rows = []
    for one, each, p in zip(overlaps, found, adjusted, strict=True):
        members = [(first, second) for first, second, _, _ in one.pairs]
        jaccard = jackknife([pair.top.jaccard for pair in each], members)
        half = (jaccard.high - jaccard.low) / 2
        means = (
            np.mean([pair.top.expected for pair in each]),
            np.mean([pair.top.kuncheva for pair in each]),
            np.mean([pair.spearman.value for pair in each]),
        )
        spread = f" ± {half:.3f}" if np.isfinite(half) else ""
        rows.append(
            (
                one.question, one.of, one.way, f"{jaccard.estimate:.3f}{spread}", f"{means[0]:.3f}", one.paper,
                f"{means[1]:.3f}", f"{means[2]:.3f}", *(f"{value:.2g}" for value in p),
            )
        )  # fmt: skip
    notes = (
        "Means over all pairs of different seeds, or of the same run where it says so; intervals: 95 %, jackknife over "
        "seeds. Seeds of the mask alone and initial scores share one stage 1: they say what the mask's learning moves. "
        "p: of a row's pairs together (harmonic mean, valid under any dependence), adjusted for all rows and nulls of "
        "this table (Holm): small means that they overlap more than random sets, than random sets of the same kinds, "
        "or than the ranking shifted along depth. A high overlap beside a large `p same kinds` says that rankings "
        "agree on kinds, not on layers.",
    )
    return Table("Do rankings agree?", COLUMNS, tuple(rows), notes)


def of_results(results: Sequence[TaskResults]) -> list[Overlap]:
    """The overlaps between seeds of every task, and between tasks on one model, for every way of scoring."""
    found = []
    for result in results:
        for way, scores in result.scores.items():
            found.append(Overlap("between seeds", result.task.name, way, within(scores), "stable"))
    for model in dict.fromkeys(result.task.inputs.model for result in results):
        group = [result for result in results if result.task.inputs.model == model]
        for way in group[0].scores if len(group) > 1 else ():
            named = {result.task.name: result.scores[way] for result in group}
            found.append(Overlap("between data sets", ", ".join(named), way, across(named), "about 0.90"))
    return found
