"""How far two or more rankings agree, always beside what chance, kinds and depth alone would give."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from keylayers.axes import LayerMask
from keylayers.errors import BadScores, UnknownName
from keylayers.maths.overlap import OverlapLaw, jaccard, kuncheva_index, random_overlap_law
from keylayers.maths.overlap_nulls import depth_law, stratified_law
from keylayers.maths.ranks import (
    Correlation,
    expected_rank_biased_overlap,
    kendall_tau,
    rank_biased_overlap,
    spearman,
)
from keylayers.scores.checks import same_layers
from keylayers.scores.policy_text import Amount
from keylayers.scores.scores import LayerScores

Acted = Literal["top", "bottom"]
NULLS = ("random", "kind", "depth")


@dataclass(frozen=True)
class SetAgreement:
    """Overlap of two equally large sets of layers, with the exact law of the overlap under each null."""

    side: Acted
    size: int
    shared: int
    jaccard: float
    kuncheva: float
    """Corrected for chance: 1 equal, 0 chance; the same for the top and the bottom set."""
    random: OverlapLaw
    """Two sets drawn at random."""
    kind: OverlapLaw
    """Two sets drawn at random with the counts per kind that they have."""
    depth: OverlapLaw
    """The second ranking shifted along the blocks, each kind independently."""

    @property
    def expected(self) -> float:
        """Chance level of the Jaccard index."""
        return self.random.expected_jaccard

    @property
    def minimum(self) -> float:
        """Smallest Jaccard index that sets of this size can have."""
        return self.random.minimum_jaccard

    def p_value(self, null: str = "random") -> float:
        """P(overlap >= the observed one) under the null `random`, `kind` or `depth`."""
        return self._law(null).p_value(self.shared)

    def smallest_p(self, null: str = "random") -> float:
        """The smallest p-value that any overlap of these sets could have reached under that null."""
        return self._law(null).smallest_p

    def _law(self, null: str) -> OverlapLaw:
        if null not in NULLS:
            raise UnknownName("null", null, NULLS)
        return {"random": self.random, "kind": self.kind, "depth": self.depth}[null]


@dataclass(frozen=True)
class Agreement:
    """Two rankings of the same layers compared: the set acted upon, the top set, and the whole order."""

    labels: tuple[str, str]
    layers: int
    fraction: float
    acted: Acted
    top: SetAgreement
    bottom: SetAgreement
    spearman: Correlation
    kendall: float
    rbo: float
    rbo_expected: float
    ties: tuple[int, int]
    """Layers on each side that tie across the cut, so that a draw alone decided."""

    @property
    def of_acted(self) -> SetAgreement:
        """The overlap of the set that is acted upon."""
        return self.top if self.acted == "top" else self.bottom

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Lines of a table: quantity, value, chance level, p-value."""
        acted = self.of_acted
        found = [_set_row(acted, "acted on")]
        for null, words in (("kind", "same kinds"), ("depth", "shifted along depth")):
            law = {"kind": acted.kind, "depth": acted.depth}[null]
            p = f"{p_text(acted.p_value(null))} (smallest attainable {p_text(acted.smallest_p(null))})"
            found.append((f"  against {words}", f"{acted.jaccard:.3f}", f"{law.expected_jaccard:.3f}", p))
        if self.acted == "bottom":
            found.append(_set_row(self.top, "the rest"))
        found.append(("Kuncheva index", f"{acted.kuncheva:.3f}", "0", ""))
        rho = self.spearman
        found.append(("Spearman", f"{rho.value:.3f}", f"0 +- {rho.null_sd:.3f}", f"{p_text(rho.p_value)} (two-sided)"))
        found.append(("Kendall tau-b", f"{self.kendall:.3f}", "0", ""))
        found.append(("rank-biased overlap, p=0.9", f"{self.rbo:.3f}", f"{self.rbo_expected:.3f}", ""))
        return found

    def __str__(self) -> str:
        head = f"{self.labels[0]} and {self.labels[1]}: {self.layers} layers, top {self.fraction:.3g}, "
        head += f"acted on: {self.acted}"
        note = ""
        if any(self.ties):
            note = f"\nties across the cut, decided by a draw: {self.ties[0]} and {self.ties[1]} layers"
        return f"{head}\n{table_text([('', 'value', 'chance', 'p'), *self.rows()])}{note}"


def agreement(
    a: LayerScores,
    b: LayerScores,
    fraction: float = 0.75,
    *,
    acted: Acted = "top",
    labels: tuple[str, str] | None = None,
) -> Agreement:
    """Agreement of two rankings of the same layers: Jaccard beside its chance level, three nulls, rank correlations.

    `fraction` is the share of layers called top (rounded as policies do: 169 of 225 at 0.75); the bottom set is the
    rest, 56. `acted` says which of the two is acted upon: `top` when tuning it, `bottom` when freezing it. `labels`
    name the two; without them their criteria do.

    Raises:
        BadScores: if the layers differ, all scores of a side are equal, or the fraction takes nothing or everything.
    """
    return compared(a, b, fraction, acted, distinct_labels([a, b], labels))


def compared(a: LayerScores, b: LayerScores, fraction: float, acted: Acted, labels: tuple[str, ...]) -> Agreement:
    """`agreement` with ready labels."""
    if acted not in ("top", "bottom"):
        raise UnknownName("set acted on", acted, ("top", "bottom"))
    same_layers(a.layers, b.layers, f"the scores {labels[0]!r} and {labels[1]!r}", BadScores)
    for one, label in ((a, labels[0]), (b, labels[1])):
        if (one.values == one.values[0]).all():
            raise BadScores(
                f"all scores of {label!r} are {one.values[0]:g}, so they rank nothing; nothing can be compared"
            )
    count = top_count(fraction, len(a.layers))
    first, second = top_mask(a, count), top_mask(b, count)
    return Agreement(
        labels=(labels[0], labels[1]),
        layers=len(a.layers),
        fraction=float(fraction),
        acted=acted,
        top=_set_agreement("top", first, second, a),
        bottom=_set_agreement("bottom", ~first, ~second, a),
        spearman=spearman(a.values, b.values),
        kendall=kendall_tau(a.values, b.values),
        rbo=rank_biased_overlap(a.order(), b.order()),
        rbo_expected=expected_rank_biased_overlap(len(a.layers)),
        ties=(_ties(a, count), _ties(b, count)),
    )


def _set_agreement(side: Acted, a: LayerMask, b: LayerMask, scores: LayerScores) -> SetAgreement:
    kinds = [layer.kind for layer in scores.layers]
    size, shared = int(a.sum()), int((a & b).sum())
    return SetAgreement(
        side=side,
        size=size,
        shared=shared,
        jaccard=jaccard(a, b),
        kuncheva=kuncheva_index(a.size, size, size, shared),
        random=random_overlap_law(a.size, size),
        kind=stratified_law(a, b, kinds),
        depth=depth_law(a, b, kinds, [layer.block for layer in scores.layers]),
    )


def top_count(fraction: float, n: int) -> int:
    """Layers in the top set. Raises BadScores unless both sets get at least one."""
    if not 0 < fraction < 1:
        raise BadScores(f"the top fraction must lie strictly between 0 and 1, got {fraction}; for example 0.75")
    count = Amount.of_share(fraction).of(n)
    if count == n:
        raise BadScores(
            f"a top fraction of {fraction:g} takes all {n} layers; choose a smaller one, so that a choice is left"
        )
    return count


def top_mask(scores: LayerScores, count: int) -> LayerMask:
    """The `count` most critical layers; ties as `order` draws them."""
    mask = np.zeros(len(scores.layers), dtype=np.bool_)
    mask[scores.order()[:count]] = True
    return mask


def _ties(scores: LayerScores, count: int) -> int:
    """Layers with the score that both the last one inside the top set and the first one outside have; 0 if none."""
    ranked = scores.values[scores.order()]
    return int((ranked == ranked[count]).sum()) if ranked[count - 1] == ranked[count] else 0


def distinct_labels(scores: Sequence[LayerScores], labels: Sequence[str] | None) -> tuple[str, ...]:
    """One label per ranking, the criteria where none are given; numbered where they repeat."""
    names = [one.criterion for one in scores] if labels is None else list(labels)
    if len(names) != len(scores):
        raise BadScores(f"{len(names)} labels were given for {len(scores)} rankings; give one each")
    seen: dict[str, int] = {}
    numbered = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        numbered.append(f"{name} ({seen[name]})" if names.count(name) > 1 else name)
    return tuple(numbered)


def _set_row(one: SetAgreement, words: str) -> tuple[str, str, str, str]:
    critical = one.random.critical_jaccard(0.05)
    beyond = "" if critical is None else f"; 5 % at {critical:.3f}"
    return (
        f"Jaccard, {one.side} {one.size} ({words})",
        f"{one.jaccard:.3f}",
        f"{one.expected:.3f} +- {one.random.sd_jaccard:.3f} (min {one.minimum:.3f}{beyond})",
        p_text(one.p_value()),
    )


def p_text(value: float) -> str:
    """A p-value as text: two digits, never a bare 0."""
    return "< 1e-300" if value < 1e-300 else f"{value:.2g}"


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equally many cells as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
