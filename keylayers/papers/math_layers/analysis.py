"""How alike the blocks' worth is between models, beside its nulls; and what arithmetic loses that recall does not."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, permutations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.maths.overlap import expected_jaccard
from keylayers.maths.ranks import average_ranks, spearman
from keylayers.measures import Interval
from keylayers.measures.intervals import jackknife
from keylayers.models.loading import load_shape
from keylayers.papers.math_layers.probes import RECALL, STEP
from keylayers.papers.math_layers.study import BASE, Model, Study
from keylayers.scores import LayerScores
from keylayers.scores.transfer import transferred

Worth = Float[np.ndarray, " blocks"]

Side = tuple[Model, int]
"""A model, under a seed."""

ENDS = 1  # blocks left out at either end where the inner ones are compared alone


@dataclass(frozen=True)
class Likeness:
    """Rank correlations of the blocks' worth between pairs of models, no pair on the same records."""

    question: str
    of: str
    blocks: int
    """Of the shallower model, on whose blocks both are compared."""
    values: tuple[float, ...]
    seeds: tuple[tuple[int, int], ...]
    """Of either side of each pair."""
    inner: float
    """Mean without the first and the last block."""
    shifted: float
    """Mean where one side is turned round by every number of blocks but 0."""
    p_value: float
    """Share of all turns, none included, whose mean is at least this high; never below 1 / blocks."""
    overlap: float
    """Mean Jaccard index of the most critical quarter."""
    chance: float
    """Expected of random sets of that size."""

    @property
    def interval(self) -> Interval:
        """Mean, with a jackknife over seeds."""
        return jackknife(self.values, self.seeds)


def top(blocks: int) -> int:
    """How many blocks count as critical: a quarter."""
    return max(1, round(blocks / 4))


def damage(study: Study, side: Side, probe: str = STEP, what: str = "loss") -> Worth:
    """What each block of a model is worth: nats per token (`loss`) or share of right answers (`exact`)."""
    model, seed = side
    return np.array(study.profiles[model][seed]["probes"][probe][f"{what}_damage"], dtype=float)


def lost(study: Study, side: Side, probe: str, what: str) -> Worth:
    """What each block is worth to a model: nats per token, or the share of its own right answers.

    A drop in right answers cannot exceed what the whole model gets right, so that drops of probes which post-training
    left unequally well known would not compare.
    """
    model, seed = side
    values = damage(study, side, probe, what)
    return values if what == "loss" else values / study.profiles[model][seed]["probes"][probe]["exact"]


def able(study: Study, models: Sequence[Model], probes: Sequence[str] = (STEP, RECALL)) -> list[Model]:
    """Those that get something right of every probe under every seed, and so have something to lose."""
    return [
        model
        for model in models
        if all(one["probes"][probe]["exact"] > 0 for one in study.profiles[model] for probe in probes)
    ]


def on_grid(study: Study, side: Side, base: str, probe: str = STEP, what: str = "loss") -> Worth:
    """The same as the blocks of another base would have it: rank shares by relative depth."""
    own, values = side[0][0], damage(study, side, probe, what)
    return values if own == base else _brought(tuple(values.tolist()), own, base)


@lru_cache(maxsize=4096)
def _brought(values: tuple[float, ...], own: str, base: str) -> Worth:
    scores = LayerScores(_blocks(own), np.array(values), "ablation", "block")
    return np.asarray(transferred(scores, _blocks(base)).values)


@lru_cache(maxsize=16)
def _blocks(base: str) -> tuple[Layer, ...]:
    return tuple(named_layers(load_shape(base), "block"))


def alike(a: Worth, b: Worth) -> float:
    """Spearman's rank correlation; 0 where all blocks of a side are worth the same, which ranks nothing."""
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else spearman(a, b).value


def critical(values: Worth) -> Int[np.ndarray, " chosen"]:
    """The quarter of the blocks that is worth most, first ones first where they tie."""
    return np.argsort(-values, kind="stable")[: top(len(values))]


def likeness(
    study: Study, question: str, of: str, pairs: Sequence[tuple[Side, Side]], grid: str, *,
    probes: tuple[str, str] = (STEP, STEP), what: str = "loss",
) -> Likeness:  # fmt: skip
    """All pairs compared on the blocks of `grid`; the first side by the first probe, the second by the second."""
    sides = [
        tuple(on_grid(study, side, grid, probe, what) for side, probe in zip(pair, probes, strict=True))
        for pair in pairs
    ]
    blocks = study.blocks(grid)
    turned = np.array([np.mean([alike(a, np.roll(b, by)) for a, b in sides]) for by in range(blocks)])
    shared = [len(np.intersect1d(critical(a), critical(b))) for a, b in sides]
    return Likeness(
        question, of, blocks,
        tuple(alike(a, b) for a, b in sides),
        tuple((first[1], second[1]) for first, second in pairs),
        float(np.mean([alike(a[ENDS:-ENDS], b[ENDS:-ENDS]) for a, b in sides])),
        float(turned[1:].mean()),
        float(np.mean(turned >= turned[0] - 1e-12)),
        float(np.mean([one / (2 * top(blocks) - one) for one in shared])),
        expected_jaccard(blocks, top(blocks)),
    )  # fmt: skip


def likenesses(study: Study, what: str = "loss") -> list[Likeness]:
    """Every question of likeness, for every model or pair of models it is asked of."""
    every, found = range(study.scale.seeds), []
    both = list(permutations(every, 2))

    def add(
        question: str, of: str, one: Model, other: Model, grid: str, probes: tuple[str, str] = (STEP, STEP)
    ) -> None:
        seeds = combinations(every, 2) if one == other and probes[0] == probes[1] else both
        pairs = [((one, s), (other, t)) for s, t in seeds]
        found.append(likeness(study, question, of, pairs, grid, probes=probes, what=what))

    for base in study.scale.bases:
        add("a base, other records", short(base), (base, BASE), (base, BASE), base)
    for model in study.judged:
        add("a base and its variant", f"{short(model[0])}: {model[1]}", (model[0], BASE), model, model[0])
    for model, second in combinations(study.judged, 2):
        if model[0] == second[0]:
            add("two variants of a base", f"{short(model[0])}: {model[1]}, {second[1]}", model, second, model[0])
    for one, other in combinations(study.scale.bases, 2):
        grid = shallower(study, one, other)
        add("two independent bases", f"{short(one)}, {short(other)}", (one, BASE), (other, BASE), grid)
    for model in (*((base, BASE) for base in study.scale.bases), *study.judged):
        add("steps and recall, one model", named(model), model, model, model[0], (STEP, RECALL))
    return found


@dataclass(frozen=True)
class Contrast:
    """A base and its variants against two bases, at one resolution and on records that no two sides share."""

    bases: tuple[str, str]
    seeds: tuple[int, int]
    kept: Mapping[str, float]
    """Kind of variant -> its correlation with its base."""
    shared: float
    """Correlation of the two bases."""

    @property
    def equal(self) -> bool:
        """Whether the two bases have one shape, so that they differ in their pre-training alone."""
        return same_shape(*self.bases)

    def more(self, kinds: Sequence[str] | None = None) -> float:
        """By how much those of a base and its variants (all, or of these kinds) are above that of the bases."""
        return (
            float(np.mean([value for kind, value in self.kept.items() if kinds is None or kind in kinds])) - self.shared
        )


def contrasts(study: Study, what: str = "loss", probe: str = STEP) -> list[Contrast]:
    """One for every two bases of which one has judged variants, and every two seeds in either order."""
    found = []
    for one, other in combinations(study.scale.bases, 2):
        grid = shallower(study, one, other)
        kept_of = [model for model in study.judged if model[0] in (one, other)]
        for s, t in permutations(range(study.scale.seeds), 2) if kept_of else ():

            def on(model: Model, seed: int, grid: str = grid) -> Worth:
                return on_grid(study, (model, seed), grid, probe, what)

            kinds: dict[str, list[float]] = {}
            for base, kind in kept_of:
                kinds.setdefault(kind, []).append(alike(on((base, BASE), s), on((base, kind), t)))
            shared = alike(on((one, BASE), s), on((other, BASE), t))
            found.append(Contrast((one, other), (s, t), {k: float(np.mean(v)) for k, v in kinds.items()}, shared))
    return found


Values = list[tuple[float, tuple[Any, Any]]]
"""Measurements, and which two seeds (or bases) each belongs to."""


def extra_loss(
    study: Study, models: Sequence[Model], what: str, chosen_by: str = STEP, first: str = STEP, second: str = RECALL
) -> Values:
    """By how much more the first probe loses than the second without one of the blocks that are critical to
    `chosen_by`; these are chosen under one seed and judged under another, or their worth would be flattered."""

    def value(s: int, t: int) -> float:
        each = []
        for model in models:
            places = critical(damage(study, (model, s), chosen_by))
            a, b = (lost(study, (model, t), probe, what)[places].mean() for probe in (first, second))
            each.append(a - b)
        return float(np.mean(each))

    return over_seeds(study, value)


def over_seeds(study: Study, value: Callable[[int, int], float]) -> Values:
    """A function of two different seeds at all of them."""
    return [(value(s, t), (s, t)) for s, t in permutations(range(study.scale.seeds), 2)]


def elbow_distances(study: Study, models: Sequence[Model]) -> Iterator[tuple[Model, tuple[int, int], float, float]]:
    """(model, seeds, blocks from the elbow of its cluster curve to the nearest critical block, mean of that distance
    over all places an elbow could have)."""
    for model in models:
        for s, t in permutations(range(study.scale.seeds), 2):
            place = study.profiles[model][s]["elbow"]
            if place is None:
                continue
            values = damage(study, (model, t))
            near = np.abs(np.arange(len(values))[:, None] - critical(values)).min(1)
            yield model, (s, t), float(near[place]), float(near[1:-1].mean())


def ranks_of(values: Worth) -> Float[np.ndarray, " blocks"]:
    """1 for the block worth most."""
    return average_ranks(-values)


def shallower(study: Study, one: str, other: str) -> str:
    """The base of fewer blocks, the first where both have as many."""
    return one if study.blocks(one) <= study.blocks(other) else other


@lru_cache(maxsize=64)
def same_shape(one: str, other: str) -> bool:
    """Whether all weights of two bases have the same shapes."""
    shapes = [[tuple(weight.shape) for weight in load_shape(base).parameters()] for base in (one, other)]
    return shapes[0] == shapes[1]


def short(base: str) -> str:
    """A base without its scheme."""
    return base.rpartition(":")[2]


def named(model: Model) -> str:
    """A model as tables call it."""
    return short(model[0]) if model[1] == BASE else f"{short(model[0])}: {model[1]}"
