"""Whether a ranking has settled: how far rankings at successive checkpoints agree, with bounds from their repeats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt, Le
from jaxtyping import Float, Int

from keylayers.axes import RepeatedScores, ScoreVector
from keylayers.errors import BadScores
from keylayers.maths.overlap import kuncheva_index
from keylayers.maths.ranks import spearman
from keylayers.scores.checks import same_layers
from keylayers.scores.rank_agreement import top_count
from keylayers.scores.scores import LayerScores
from keylayers.settings import Count, Inside, Seed, Settings

SPLITS = 50
"""Random splits of the repeats into halves."""

FORGIVEN = 0.5
"""Exchanged layers are forgiven only where they leave the Kuncheva index at least this high."""

NOISE = 0.5
"""A ranking whose bound with itself is lower than this is taken for noise, which more of the same does not settle."""

Index = Callable[[ScoreVector, ScoreVector], float]


@dataclass(frozen=True)
class Rule(Settings):
    """When rankings count as settled."""

    target: Annotated[float, Gt(0), Le(1)] = 0.9
    """For the lower bounds of Spearman's correlation and of the Kuncheva index of the top sets, in (0, 1]."""
    share: Inside = 0.3
    """Of the layers in the top set."""
    in_a_row: Count = 2
    """Successive pairs of checkpoints that must reach it, up to the latest."""
    level: Annotated[float, Gt(0), Le(0.5)] = 0.05
    """Quantile of the bootstrap that serves as lower bound."""
    draws: Count = 500
    seed: Seed = 0


@dataclass(frozen=True)
class Measured:
    """Agreement of two rankings by one index, and what could be expected of it; each at most 1."""

    value: float
    """Of the rankings themselves."""
    low: float
    """Lower bound: the low quantile over pairs of resamples, one of each ranking's repeats."""
    ceiling: float
    """The same bound for the later ranking with itself: no other ranking can be asked to agree better."""
    halves: float
    """Mean agreement of two halves of the later ranking's repeats."""
    target: float

    @property
    def needed(self) -> float:
        """What the lower bound must reach: the target, or the ceiling where that is lower and no noise."""
        return min(self.target, max(self.ceiling, NOISE))

    @property
    def reached(self) -> bool:
        """Whether the lower bound is high enough."""
        return self.low >= self.needed

    @property
    def in_reach(self) -> bool:
        """Whether it could be, were the earlier ranking equal to the later one: false for noise."""
        return self.ceiling >= self.needed


@dataclass(frozen=True)
class Move:
    """How far a ranking moved from one checkpoint to the next."""

    spearman: Measured
    """Over all layers."""
    kuncheva: Measured
    """Of the top sets."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "Move":
        """Back from plain JSON."""
        return cls(Measured(**fields["spearman"]), Measured(**fields["kuncheva"]))

    @property
    def reached(self) -> bool:
        """Whether both indices are high enough."""
        return self.spearman.reached and self.kuncheva.reached

    @property
    def in_reach(self) -> bool:
        """Whether the repeats are steady enough for both indices to be high enough at all."""
        return self.spearman.in_reach and self.kuncheva.in_reach


def has_settled(moves: Sequence[Move], rule: Rule) -> bool:
    """Whether the latest moves, as many as the rule asks for, were all small enough."""
    return len(moves) >= rule.in_a_row and all(move.reached for move in moves[-rule.in_a_row :])


def moved(earlier: LayerScores, later: LayerScores, rule: Rule) -> Move:
    """Agreement of the rankings of two checkpoints, with lower bounds by bootstrap over their repeats.

    The repeats of the two sides are resampled independently, also where they are of the same batches: else the noise
    of the batches, which both share, would count as agreement, and a ranking of mere noise would look settled. The
    price is a bound that is low where few or unlike batches are scored, however little the ranking moves. So it is
    asked to be as high as the target or as the ranking's own, its `ceiling`: more training lifts neither above that.
    A side whose scores are all equal ranks nothing and agrees with nothing (0). Deterministic for a rule.

    Raises:
        BadScores: if the layers differ, a side has fewer than two repeats, or the share takes no layer or all.
    """
    same_layers(earlier.layers, later.layers, "the rankings of two checkpoints", BadScores)
    count = top_count(rule.share, len(later.layers))
    first, second = _repeats(earlier), _repeats(later)
    draw = np.random.default_rng(rule.seed)
    ours, theirs = _resampled(first, second, rule.draws, draw)
    own = _resampled(second, second, rule.draws, np.random.default_rng(rule.seed))[0]
    splits = [draw.permutation(len(second)) for _ in range(SPLITS)]

    def measured(index: Index, target: float) -> Measured:
        def bound(one: RepeatedScores, other: RepeatedScores) -> float:
            found = [index(a, b) for a, b in zip(one, other, strict=True)]
            return float(np.quantile(found, rule.level, method="lower"))

        halves = [index(second[a].mean(0), second[b].mean(0)) for a, b in map(_halves, splits)]
        return Measured(
            index(earlier.values, later.values), bound(ours, theirs), bound(own, theirs), float(np.mean(halves)), target
        )

    def overlap(a: ScoreVector, b: ScoreVector) -> float:
        return _top_agreement(a, b, count)

    return Move(
        measured(_rank_agreement, rule.target),
        measured(overlap, overlap_target(rule.target, len(later.layers), count)),
    )


def overlap_target(target: float, layers: int, count: int) -> float:
    """The target for the Kuncheva index of top sets of `count` of so many layers.

    The index has steps: with every layer exchanged for another it falls by n / (k (n - k)), which among 85 layers, for
    sets of 26, is 0.06, and 0.14 for ten of 35. The target is lowered to the nearest step, and so that one exchange is
    forgiven; neither where it would leave less than halfway between chance and equality.
    """

    def after(exchanges: int) -> float:
        return kuncheva_index(layers, count, count, count - exchanges)

    nearest = round((1 - target) / (1 - after(1)))
    return min([target, *(after(exchanges) for exchanges in (1, nearest) if after(exchanges) >= FORGIVEN)])


def _repeats(scores: LayerScores) -> RepeatedScores:
    if scores.repeats is None or len(scores.repeats) < 2:
        raise BadScores(
            "whether a ranking has settled is judged by its repeats, and these scores have fewer than two; score on at "
            "least two batches",
            "give more calibration records",
            "take a smaller `batch_size`",
        )
    return scores.repeats


def _resampled(
    first: RepeatedScores, second: RepeatedScores, draws: int, draw: np.random.Generator
) -> tuple[Float[np.ndarray, "draws layers"], Float[np.ndarray, "draws layers"]]:
    """Means of repeats drawn with replacement, of either side on its own; the same draws for the same generator."""
    ours, theirs = (_means(side, draw.integers(len(side), size=(draws, len(side)))) for side in (first, second))
    return ours, theirs


def _means(repeats: RepeatedScores, chosen: Int[np.ndarray, "draws repeats"]) -> Float[np.ndarray, "draws layers"]:
    """Weighted by how often each repeat was drawn: never holds draws x repeats x layers numbers."""
    times = np.stack([np.bincount(row, minlength=len(repeats)) for row in chosen])
    return times @ repeats / len(repeats)


def _halves(order: Int[np.ndarray, " repeats"]) -> tuple[Int[np.ndarray, " half"], Int[np.ndarray, " half"]]:
    middle = len(order) // 2
    return order[:middle], order[middle : 2 * middle]  # of an odd number one is left out


def _ranks(values: ScoreVector) -> bool:
    """Whether the values rank anything."""
    return bool((values != values[0]).any())


def _rank_agreement(a: ScoreVector, b: ScoreVector) -> float:
    return spearman(a, b).value if _ranks(a) and _ranks(b) else 0.0


def _top_agreement(a: ScoreVector, b: ScoreVector, count: int) -> float:
    if not (_ranks(a) and _ranks(b)):
        return 0.0
    first, second = (set(np.argsort(-side, kind="stable")[:count].tolist()) for side in (a, b))
    return kuncheva_index(a.size, count, count, len(first & second))
