"""How well a detector tells poisoned inputs from clean ones: true and false alarms, and the area under their curve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from keylayers.errors import BadInput
from keylayers.measures.intervals import Interval, wilson_interval

RATES = (0.01, 0.05)
"""Rates of false alarms at which detection is compared."""

Numbers = Sequence[float] | Float[np.ndarray, " samples"]


@dataclass(frozen=True)
class Detection:
    """A detector on clean and poisoned inputs."""

    auroc: Interval
    """Probability that a poisoned input scores above a clean one, in [0, 1]; a tie counts half."""
    tpr_at: Mapping[float, Interval]
    """Share of poisoned inputs found where the share of clean inputs flagged is at most the key."""
    tpr: Interval | None = None
    """Share of poisoned inputs that were flagged; None where no flags were given."""
    fpr: Interval | None = None
    """Share of clean inputs that were flagged."""
    clean: int = field(default=0, kw_only=True)
    poisoned: int = field(default=0, kw_only=True)


def rate_detection(
    clean: Numbers,
    poisoned: Numbers,
    *,
    flags: tuple[Sequence[bool] | Bool[np.ndarray, " clean"], Sequence[bool] | Bool[np.ndarray, " poisoned"]]
    | None = None,
    rates: Sequence[float] = RATES,
    level: float = 0.95,
    seed: int = 0,
) -> Detection:
    """All measures of a detector from its scores, higher = more suspicious, and the flags it raised on clean and on
    poisoned inputs.

    Raises:
        BadInput: without clean or without poisoned inputs, for a score that is not finite, or other numbers of flags.
    """
    negatives, positives = _checked(clean, "clean"), _checked(poisoned, "poisoned")
    tpr = fpr = None
    if flags is not None:
        fpr, tpr = (
            _share(raised, len(scores), what, level)
            for raised, scores, what in zip(flags, (negatives, positives), ("clean", "poisoned"), strict=True)
        )
    at = {rate: tpr_at(negatives, positives, rate, level=level, seed=seed) for rate in rates}
    counts = {"clean": len(negatives), "poisoned": len(positives)}
    return Detection(auroc(negatives, positives, level=level), at, tpr, fpr, **counts)


def auroc(clean: Numbers, poisoned: Numbers, *, level: float = 0.95) -> Interval:
    """Area under the curve of true over false alarms, in [0, 1], with DeLong's interval (1988) on the logit scale.

    Where all are told apart, or all the wrong way round, that interval is empty, and Wilson's for as many pairs as
    there are inputs of the rarer sort stands in.
    """
    from scipy import stats
    from sklearn.metrics import roc_auc_score

    negatives, positives = _checked(clean, "clean"), _checked(poisoned, "poisoned")
    few = min(len(negatives), len(positives))
    truth = np.repeat([0, 1], [len(negatives), len(positives)])
    area = float(roc_auc_score(truth, np.concatenate([negatives, positives])))
    if area in (0.0, 1.0) or few < 2:
        wilson = wilson_interval(round(area * few), few, level=level)
        return Interval(area, min(area, wilson.low), max(area, wilson.high), level)
    ranks = stats.rankdata(np.concatenate([negatives, positives]))
    below = (ranks[len(negatives) :] - stats.rankdata(positives)) / len(negatives)  # share of clean ones below each
    above = 1 - (ranks[: len(negatives)] - stats.rankdata(negatives)) / len(positives)
    error = np.sqrt(below.var(ddof=1) / len(positives) + above.var(ddof=1) / len(negatives))
    reach = float(stats.norm.ppf(0.5 + level / 2)) * error / (area * (1 - area))
    logit = np.log(area / (1 - area))
    low, high = (float(1 / (1 + np.exp(-end))) for end in (logit - reach, logit + reach))
    return Interval(area, low, high, level)


def tpr_at(
    clean: Numbers,
    poisoned: Numbers,
    rate: float,
    *,
    level: float = 0.95,
    resamples: int = 999,
    seed: int = 0,
) -> Interval:
    """Share of poisoned inputs above the lowest threshold that at most a share `rate` of the clean ones exceeds.

    Nothing is interpolated, and ties with the threshold are not found. The interval covers both sorts' sampling
    (bootstrap of each), and is never narrower than Wilson's for the threshold as it is.

    Raises:
        BadInput: unless the rate lies in [0, 1), or as `detection` does.
    """
    negatives, positives = _checked(clean, "clean"), _checked(poisoned, "poisoned")
    if not 0 <= rate < 1:
        raise BadInput(f"rate={rate}: expected a share of false alarms in [0, 1).")
    # The (k + 1)-th largest clean score, k = floor(rate n): at most k of them lie above it.
    place = len(negatives) - 1 - int(np.floor(rate * len(negatives) * (1 + 1e-12)))
    found = int((positives > np.sort(negatives)[place]).sum())
    wilson = wilson_interval(found, len(positives), level=level)
    generator, shares = np.random.default_rng(seed), np.empty(resamples)
    for index in range(resamples):
        drawn = generator.choice(negatives, len(negatives))
        threshold = np.partition(drawn, place)[place]
        shares[index] = (generator.choice(positives, len(positives)) > threshold).mean()
    low, high = np.quantile(shares, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(wilson.estimate, min(wilson.low, float(low)), max(wilson.high, float(high)), level)


def _checked(scores: Numbers, what: str) -> Float[np.ndarray, " samples"]:
    values = np.asarray(scores, dtype=float)
    if values.ndim != 1 or not len(values):
        raise BadInput(f"{what} scores have shape {values.shape}; expected one number for each of at least one input.")
    if not np.isfinite(values).all():
        raise BadInput(f"{what} score {int((~np.isfinite(values)).argmax())} is not finite; look at its features.")
    return values


def _share(flags: Sequence[bool] | np.ndarray, count: int, what: str, level: float) -> Interval:
    raised = np.asarray(flags)
    if raised.shape != (count,) or raised.dtype != np.bool_:
        raise BadInput(f"flags of {what} inputs have shape {raised.shape}; expected true or false for each of {count}.")
    return wilson_interval(int(raised.sum()), count, level=level)
