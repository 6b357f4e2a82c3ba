"""Two or more rankings compared pair by pair, p-values adjusted for their number, with the stability of the sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float

from keylayers.errors import BadScores, UnknownName
from keylayers.maths.stability import SetStability, holm, set_stability
from keylayers.scores.rank_agreement import (
    NULLS,
    Acted,
    Agreement,
    compared,
    distinct_labels,
    p_text,
    table_text,
    top_count,
    top_mask,
)
from keylayers.scores.scores import LayerScores


@dataclass(frozen=True)
class AgreementTable:
    """Several rankings of the same layers compared pair by pair, with the stability of the sets acted upon."""

    labels: tuple[str, ...]
    pairs: tuple[Agreement, ...]
    """In the order (0, 1), (0, 2), ..., (1, 2), ..."""
    stability: SetStability

    def matrix(self, quantity: str = "jaccard") -> Float[np.ndarray, "rankings rankings"]:
        """One quantity for all pairs, symmetric, 1 on the diagonal.

        `jaccard` and `kuncheva` of the set acted upon, its `expected` Jaccard, `spearman`, `kendall` or `rbo`.
        """
        values = {
            "jaccard": [pair.of_acted.jaccard for pair in self.pairs],
            "kuncheva": [pair.of_acted.kuncheva for pair in self.pairs],
            "expected": [pair.of_acted.expected for pair in self.pairs],
            "spearman": [pair.spearman.value for pair in self.pairs],
            "kendall": [pair.kendall for pair in self.pairs],
            "rbo": [pair.rbo for pair in self.pairs],
        }
        if quantity not in values:
            raise UnknownName("quantity", quantity, values)
        found = np.eye(len(self.labels))
        upper = np.triu_indices(len(self.labels), k=1)
        found[upper] = values[quantity]
        return np.maximum(found, found.T) if quantity == "expected" else found + np.triu(found, k=1).T

    def p_values(self, null: str = "random") -> Float[np.ndarray, " pairs"]:
        """p-value of each pair under a null, adjusted for the number of pairs (Holm)."""
        return holm(np.array([pair.of_acted.p_value(null) for pair in self.pairs]))

    def rows(self) -> list[tuple[str, ...]]:
        """Lines of a table: pair, Jaccard, chance level, Kuncheva, Spearman, adjusted p under each null."""
        adjusted = [self.p_values(null) for null in NULLS]
        return [
            (
                f"{pair.labels[0]} / {pair.labels[1]}",
                f"{pair.of_acted.jaccard:.3f}",
                f"{pair.of_acted.expected:.3f}",
                f"{pair.of_acted.kuncheva:.3f}",
                f"{pair.spearman.value:.3f}",
                *(p_text(float(column[i])) for column in adjusted),
            )
            for i, pair in enumerate(self.pairs)
        ]

    def __str__(self) -> str:
        one, stable = self.pairs[0], self.stability
        head = (
            f"{len(self.labels)} rankings of {one.layers} layers; {one.acted} set of {one.of_acted.size} layers; "
            "p-values adjusted for the number of pairs (Holm)"
        )
        titles = ("pair", "Jaccard", "chance", "Kuncheva", "Spearman", "p random", "p same kinds", "p along depth")
        foot = f"stability of the sets (Nogueira; 1 equal, 0 chance): {stable.value:.3f}"
        if stable.low is not None:
            foot += f", {stable.level:.0%} interval {stable.low:.3f} to {stable.high:.3f}"
        for null, words in (("kind", "with same kinds"), ("depth", "along depth")):
            least = [pair.of_acted.smallest_p(null) for pair in self.pairs]
            foot += f"\nsmallest p attainable {words}, before adjusting: {p_text(min(least))} to {p_text(max(least))}"
        tied = sum(any(pair.ties) for pair in self.pairs)
        foot += f"\nties across the cut decided by a draw in {tied} pairs" if tied else ""
        return f"{head}\n{table_text([titles, *self.rows()])}\n{foot}"


def agreements(
    scores: Sequence[LayerScores],
    fraction: float = 0.75,
    *,
    acted: Acted = "top",
    labels: Sequence[str] | None = None,
) -> AgreementTable:
    """Agreement of every pair of two or more rankings, p-values adjusted by Holm, and Nogueira's stability of the sets.

    `labels` name the rankings; without them their criteria do, numbered where they repeat. Raises BadScores as
    `agreement` does, or for fewer than two rankings.
    """
    if len(scores) < 2:
        raise BadScores(f"agreement compares two or more rankings, got {len(scores)}")
    names = distinct_labels(scores, labels)
    pairs = tuple(
        compared(scores[i], scores[j], fraction, acted, (names[i], names[j]))
        for i, j in combinations(range(len(scores)), 2)
    )
    count = top_count(fraction, len(scores[0].layers))
    masks = np.array([top_mask(one, count) for one in scores])
    return AgreementTable(names, pairs, set_stability(masks if acted == "top" else ~masks))
