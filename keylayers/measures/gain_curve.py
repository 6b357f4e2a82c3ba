"""The gain curve: the share of tuning's gain that stays when only the k most critical layers keep their changes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from jaxtyping import Float, Int

from keylayers.errors import BadInput
from keylayers.measures import Interval, paired_bootstrap, t_interval
from keylayers.measures.loss import ExampleLosses
from keylayers.scores.random_draws import DRAWS

ONE_SIDED = 0.95
"""How sure the lower bound is that a size is chosen by."""
RESAMPLES = 4999


@dataclass(frozen=True)
class Kept:
    """What the changes of k layers keep of the gain."""

    k: int
    share: float
    """(L0 - Lk) / (L0 - Lfull): 0 as the base model, 1 as the tuned one; outside where layers do harm or hide some."""
    low: float
    """One-sided 95 % lower bound of the share, over examples."""
    high: float
    """One-sided 95 % upper bound."""
    random: tuple[float, ...]
    """The shares that as many random layers of the same kinds keep, one per draw; none where all layers are kept."""

    @property
    def lead(self) -> Interval | None:
        """By how much the share exceeds that of random layers: mean over the draws, with its 95 % interval."""
        return t_interval([self.share - other for other in self.random]) if self.random else None


@dataclass(frozen=True)
class GainCurve:
    """The shares kept by growing sets of layers, on one set of examples."""

    base_loss: float
    """Nats per token, as all losses here."""
    tuned_loss: float
    gain: Interval
    """Loss of the base model minus loss of the tuned one; its interval lies above 0."""
    examples: int
    points: tuple[Kept, ...]
    """By growing k."""

    def at(self, k: int) -> Kept:
        """The point of that size. Raises BadInput if it was not measured."""
        for point in self.points:
            if point.k == k:
                return point
        raise BadInput(f"{k} layers were not measured; measured are {', '.join(str(one.k) for one in self.points)}.")

    def smallest(self, within: float) -> int | None:
        """The fewest layers whose lower bound reaches 1 - within, and that of every larger size measured with it.

        Down from the largest size to the first that fails: each step is taken only when all before it held, so that for
        sizes fixed beforehand the chance to end at one that is too small stays 5 %, however many there are. None if the
        largest fails.
        """
        return self._last(lambda point: point.low >= 1 - within)

    def random_enough(self, within: float) -> int | None:
        """The fewest layers of which random sets keep 1 - within on average, and so of every larger size measured."""
        return self._last(lambda point: not point.random or sum(point.random) >= (1 - within) * len(point.random))

    def _last(self, holds: Callable[[Kept], bool]) -> int | None:
        """Down from the largest size, the last before the first that fails."""
        return min((point.k for point in takewhile(holds, reversed(self.points))), default=None)


def clear_gain(base: ExampleLosses, tuned: ExampleLosses, what: str) -> Interval:
    """Loss of the base model minus loss of the tuned one, nats per token, with a 95 % interval over the examples.

    Raises:
        BadInput: if both do not cost the same examples, or if the interval does not lie above 0: there is no gain to
            take a share of. `what` names the examples.
    """
    _require_same(base, tuned)
    gain = paired_bootstrap(base.nats, tuned.nats, base.tokens)
    losses = f"loss {tuned.mean:.4f} after tuning, {base.mean:.4f} before"
    if gain.estimate <= 0:
        raise BadInput(
            f"the tuned model is no better than the base on the {what} ({losses}), so there is no gain to take a share "
            "of; name the data it was tuned on (`data`), or tune it longer."
        )
    if gain.low <= 0:
        raise BadInput(
            f"the gain on {len(base.nats)} {what} cannot be told from none ({losses}; difference {gain}); give more "
            "records (`held_out`), or a model that was tuned longer."
        )
    return gain


def bound_gains(
    base: ExampleLosses,
    tuned: ExampleLosses,
    kept: Mapping[int, ExampleLosses],
    random: Mapping[int, Sequence[ExampleLosses]],
    *,
    layers: int,
    what: str = "examples",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> GainCurve:
    """The curve, from what each example costs the base model, the tuned one, and those that keep k layers' changes.

    `kept` and `random` are by k, of `layers` in all; the second holds at least five random sets for every k but the
    full one, so that no curve stands alone. Bounds are bias-corrected and accelerated (Efron 1987) from a bootstrap
    that draws whole examples, the same for every k, since all losses are of the same examples.

    Raises:
        BadInput: if the gain is not clear (`clear_gain`), the examples differ, or random sets are missing.
    """
    gain = clear_gain(base, tuned, what)
    sizes = sorted(kept)
    for k in sizes:
        if k < layers and len(random.get(k, ())) < DRAWS:
            raise BadInput(f"{len(random.get(k, ()))} random sets of {k} layers: expected at least {DRAWS}.")
    for one in (*kept.values(), *(one for k in sizes for one in random.get(k, ()))):
        _require_same(base, one)
    whole = base.nats - tuned.nats
    parts = np.stack([base.nats - kept[k].nats for k in sizes], axis=1)
    bounds = _bounds(parts, whole, resamples, seed)
    if not np.isfinite(bounds).all():
        raise BadInput(f"the gain on {len(whole)} {what} is too unsure to take a share of ({gain}); give more records.")
    points = []
    for place, k in enumerate(sizes):
        draws = tuple(float((base.nats - one.nats).sum() / whole.sum()) for one in random.get(k, ()))
        share = float(parts[:, place].sum() / whole.sum())
        points.append(Kept(k, share, float(bounds[place, 0]), float(bounds[place, 1]), draws))
    return GainCurve(base.mean, tuned.mean, gain, len(whole), tuple(points))


def grid(layers: int, points: int) -> tuple[int, ...]:
    """At most that many sizes from 1 to all layers, in steps of nearly one ratio. Raises BadInput for fewer than 2."""
    if points < 2:
        raise BadInput(f"a curve of {points} sizes: expected at least 2.")
    return tuple(sorted({round(size) for size in np.geomspace(1, layers, points)}))


def between(curve: GainCurve, within: float) -> int | None:
    """The size halfway between the chosen one and the next smaller measured; None where nothing lies between."""
    chosen = curve.smallest(within)
    below = max((point.k for point in curve.points if chosen is not None and point.k < chosen), default=0)
    return None if chosen is None or chosen - below < 2 else (chosen + below) // 2


def _require_same(base: ExampleLosses, other: ExampleLosses) -> None:
    if base.origins != other.origins or not np.array_equal(base.tokens, other.tokens):
        raise BadInput("losses of different examples cannot be compared; measure all models on the same records.")


def _bounds(
    parts: Float[np.ndarray, "samples sizes"], whole: Float[np.ndarray, " samples"], resamples: int, seed: int
) -> Float[np.ndarray, "sizes 2"]:
    """Lower and upper one-sided bound of sum(part) / sum(whole); tokens cancel, as both are per token of one sample."""
    shares = parts.sum(axis=0) / whole.sum()
    both = np.column_stack([parts, whole])
    sums = np.concatenate([counts @ both for counts in _counts(len(whole), resamples, seed)])
    # A resample without gain has no share; it counts as the worst one for either bound.
    ratios = np.full((2, resamples, len(shares)), [[[-np.inf]], [[np.inf]]])
    some = sums[:, -1] > 0
    ratios[:, some] = sums[some, :-1] / sums[some, -1:]
    bounds = np.empty((len(shares), 2))
    for place, share in enumerate(shares):
        beyond = parts[:, place] - share * whole  # what each example adds to the share, but for a factor
        if np.allclose(beyond, 0, rtol=0, atol=1e-9 * abs(whole).max()):  # every resample gives the same share
            bounds[place] = share
            continue
        for side, tail in enumerate((1 - ONE_SIDED, ONE_SIDED)):
            column = ratios[side, :, place]
            bounds[place, side] = np.quantile(column, _corrected(tail, column, share, beyond), method="inverted_cdf")
    return bounds


def _corrected(tail: float, resampled: np.ndarray, estimate: float, influence: np.ndarray) -> float:
    """The quantile of the resampled values at which the bound of that tail lies."""
    from scipy.special import ndtr, ndtri

    below = ((resampled < estimate).mean() + (resampled <= estimate).mean()) / 2
    bias = ndtri(np.clip(below, 1 / (len(resampled) + 1), len(resampled) / (len(resampled) + 1)))
    acceleration = float((influence**3).sum() / (6 * (influence**2).sum() ** 1.5))
    point = bias + ndtri(tail)
    return float(ndtr(bias + point / (1 - acceleration * point)))


def _counts(samples: int, resamples: int, seed: int) -> Iterator[Int[np.ndarray, "resamples samples"]]:
    """How often each resample holds each example, some resamples at a time."""
    rng, step = np.random.default_rng(seed), max(1, 2**22 // samples)
    for start in range(0, resamples, step):
        yield rng.multinomial(samples, np.full(samples, 1 / samples), size=min(step, resamples - start))
