"""Comparisons as a page shows them: arms on common axes, and rankings pair by pair beside chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from keylayers.errors import KeylayersError
from keylayers.measures.blow_ups import with_rate
from keylayers.report.answers import verdict
from keylayers.report.arms import Arm, Tuning
from keylayers.report.collect import CUT, Collected, Ranking
from keylayers.report.shapes import Scale, scale
from keylayers.report.words import MINUS, and_list, number, plural, policy_words, share, whole, with_half_width
from keylayers.scores import AgreementTable, agreements
from keylayers.scores.rank_agreement import NULLS, Acted, p_text


@dataclass(frozen=True)
class ArmRow:
    """One arm on the two axes of a comparison, and as cells of a table."""

    policy: str
    words: str
    mark: str
    dot: float
    bar: tuple[float, float] | None
    seeds: tuple[float, ...]
    loss: str
    gap_dot: float | None
    gap_bar: tuple[float, float] | None
    gap: str
    verdict: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class ArmsView:
    """All arms on common axes: held-out loss, and how the first arm differs from each other."""

    rows: tuple[ArmRow, ...]
    losses: Scale
    gaps: Scale | None
    zero: float
    seeds: int


@dataclass(frozen=True)
class PairRow:
    """Agreement of two rankings, beside chance."""

    pair: str
    shared: str
    jaccard: str
    at: float
    chance: str
    chance_at: float
    spread: tuple[float, float]
    kuncheva: str
    spearman: str
    p: tuple[str, ...]


@dataclass(frozen=True)
class AgreementView:
    """Rankings that answer one question, pair by pair."""

    title: str
    rows: tuple[PairRow, ...]
    notes: tuple[str, ...]
    tables: tuple[AgreementTable, ...]


def arms_view(tuning: Tuning) -> ArmsView:
    """The arms with 95 % intervals, on common axes."""
    first = tuning.arms[0]
    values = [value for arm in tuning.arms for value in (*arm.losses, *_ends(arm))]
    axis = scale(values)
    paired = {arm.policy: first.minus(arm) for arm in tuning.arms[1:]}
    plain = {arm.policy: first.mean - arm.mean for arm in tuning.arms[1:]}
    spread = [v for one in paired.values() if one is not None for v in (one.interval.low, one.interval.high)]
    gaps = scale([0.0, *plain.values(), *spread]) if plain else None
    rows = []
    for arm in tuning.arms:
        ends, one = _ends(arm), paired.get(arm.policy)
        half = None if arm.interval is None else (arm.interval.high - arm.interval.low) / 2
        gap_half = None if one is None else (one.interval.high - one.interval.low) / 2
        gap = "" if arm is first else with_half_width(plain[arm.policy], gap_half, sign=True)
        text = with_half_width(arm.mean, half)
        rows.append(
            ArmRow(
                policy=arm.policy,
                words=policy_words(arm.policy),
                mark="first" if arm is first else "random" if arm.is_random else "other",
                dot=axis.at(arm.mean),
                bar=axis.span(*ends) if ends else None,
                seeds=tuple(axis.at(value) for value in arm.losses) if len(arm.losses) > 1 else (),
                loss=text,
                gap_dot=None if arm is first or gaps is None else gaps.at(plain[arm.policy]),
                gap_bar=None if one is None or gaps is None else gaps.span(one.interval.low, one.interval.high),
                gap=gap,
                verdict="the arm asked for" if arm is first else verdict(first, arm),
                cells=(
                    text,
                    gap,
                    whole(arm.layers),
                    share(arm.size_share),
                    whole(arm.trainable),
                    with_rate(arm.learning_rate, arm.blew_up).replace("-", MINUS),
                ),
            )
        )
    return ArmsView(tuple(rows), axis, gaps, gaps.at(0.0) if gaps else 0.0, len(first.losses))


@dataclass(frozen=True)
class Question:
    """Rankings to compare, and under which heading."""

    title: str
    rankings: tuple[Ranking, ...]
    labels: tuple[str, ...]
    fraction: float = CUT
    acted: Acted = "top"
    prefix: str = ""
    """What the rows of this table begin with, where a heading has several tables."""


def agreement_views(collected: Collected) -> tuple[tuple[AgreementView, ...], tuple[str, ...]]:
    """Every question that two or more rankings answer, and what cannot be compared, in words."""
    tables: dict[str, list[tuple[str, AgreementTable]]] = {}
    said = []
    for one in _questions(collected):
        try:
            scores = [ranking.scores for ranking in one.rankings]
            table = agreements(scores, one.fraction, acted=one.acted, labels=one.labels)
        except KeylayersError as error:
            said.append(str(error))
            continue
        tables.setdefault(one.title, []).append((one.prefix, table))
    views = tuple(
        AgreementView(
            title,
            tuple(row for prefix, table in several for row in _pair_rows(table, prefix)),
            _agreement_notes([table for _, table in several]),
            tuple(table for _, table in several),
        )
        for title, several in tables.items()
    )
    return views, tuple(said)


def _questions(collected: Collected) -> list[Question]:
    run = collected.runs[0]
    if run.command == "compare":
        cut, acted = run.setting("top"), run.setting("acted")
        labels = tuple(one.label for one in run.rankings)
        side: Acted = "bottom" if acted == "bottom" else "top"
        one = Question("The rankings, pair by pair", run.rankings, labels, cut if isinstance(cut, float) else CUT, side)
        return [one] if len(run.rankings) > 1 else []
    scored = [one for one in collected.runs if one.command == "score"]
    found = []
    everything = [(run.name, ranking) for run in scored for ranking in run.rankings]
    for criterion, group in groupby(sorted(everything, key=lambda one: one[1].label), key=lambda one: one[1].label):
        several = list(group)  # the sort is stable: the runs are in their order
        if len(several) > 1:
            names, rankings = zip(*several, strict=True)
            found.append(Question(f"Do {and_list(names)} need the same layers, by {criterion}?", rankings, names))
    for run in scored:
        if len(run.rankings) > 1:
            names = tuple(one.label for one in run.rankings)
            prefix = f"{run.name}: " if len(scored) > 1 else ""
            found.append(Question("Do the criteria agree?", run.rankings, names, prefix=prefix))
    return found


def _pair_rows(table: AgreementTable, prefix: str) -> tuple[PairRow, ...]:
    adjusted = [table.p_values(null) for null in NULLS]
    rows = []
    for i, pair in enumerate(table.pairs):
        acted = pair.of_acted
        low, high = (min(1.0, max(0.0, acted.expected + way * 1.96 * acted.random.sd_jaccard)) for way in (-1, 1))
        rows.append(
            PairRow(
                pair=f"{prefix}{pair.labels[0]} / {pair.labels[1]}",
                shared=f"{acted.shared} of {acted.size}",
                jaccard=f"{acted.jaccard:.3f}",
                at=round(100 * acted.jaccard, 2),
                chance=f"{acted.expected:.3f}",
                chance_at=round(100 * acted.expected, 2),
                spread=(round(100 * low, 2), round(100 * (high - low), 2)),
                kuncheva=number(acted.kuncheva, 3),
                spearman=number(pair.spearman.value, 3),
                p=tuple(p_text(float(column[i])) for column in adjusted),
            )
        )
    return tuple(rows)


def _agreement_notes(tables: Sequence[AgreementTable]) -> tuple[str, ...]:
    pairs = [pair for table in tables for pair in table.pairs]
    one, smallest = pairs[0], min(pair.of_acted.smallest_p("depth") for pair in pairs)
    adjusted = (
        " are adjusted for the number of pairs (Holm)" if len(tables[0].pairs) > 1 else " are those of single pairs"
    )
    notes = [
        f"{one.acted.capitalize()} set: {one.of_acted.size} of {one.layers} layers. p-values{adjusted}; the smallest "
        f"attainable along depth is {p_text(smallest)}."
    ]
    if len(tables[0].pairs) > 1:
        stable = tables[0].stability
        notes.append(
            f"Stability of all the sets (1 equal, 0 chance): {number(stable.value, 3)}"
            + (
                ", without an interval, which takes five that differ."
                if stable.low is None or stable.high is None
                else f", 95 % interval {number(stable.low, 3)} to {number(stable.high, 3)}."
            )
        )
    if tied := sum(any(pair.ties) for pair in pairs):
        notes.append(f"In {plural(tied, 'pair')} ties across the cut were decided by a draw.")
    return tuple(notes)


def _ends(arm: Arm) -> tuple[float, ...]:
    return () if arm.interval is None else (arm.interval.low, arm.interval.high)
