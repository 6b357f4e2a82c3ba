"""Trainings that blew up, and the learning rate of an arm: the best of those at which fewest did."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median

LOST = 0.2
"""Of what the arm's other runs gained: a run that lacks more of it stands apart."""
FEWEST = 3
"""Runs without which none stands apart: of two, nobody can say which is the odd one."""

_RULE = (
    "A training blew up if its calibration loss is not finite, or no lower than before training, or lacks more than "
    f"{LOST:.0%} of what the arm's other seeds gained at that rate (median; of {FEWEST} seeds or more), unless the "
    "same seed did as badly at a lower rate."
)

Tried = Mapping[float, Sequence[float]]
"""Learning rate -> loss on calibration records after training, per seed."""


def blown_up(tried: Tried, before: float, lost: float = LOST) -> dict[float, tuple[str, ...]]:
    """Rate -> for each seed why its training is taken to have blown up, by the rule above; empty text where it did not.

    `before`: the same loss before training; `lost`: the share of the others' gain whose lack sets a run apart. A low
    loss of few seeds at a high rate says little where others of its arm are lost there. A seed that is as badly off at
    a lower rate has poor layers, not a poor rate.
    """
    return {
        rate: tuple(_reason(tried, rate, seed, before, lost) for seed in range(len(each)))
        for rate, each in tried.items()
    }


def best_rate(tried: Tried, reasons: Mapping[float, Sequence[str]]) -> float:
    """The rate of lowest mean loss over all seeds, among those at which the fewest trainings blew up."""

    def badness(rate: float) -> tuple[int, float]:
        mean = fmean(tried[rate])
        return sum(map(bool, reasons[rate])), mean if math.isfinite(mean) else math.inf

    return min(tried, key=badness)


def with_rate(rate: float, reasons: Sequence[str]) -> str:
    """A rate as tables have it, with how many of its trainings blew up."""
    count = sum(map(bool, reasons))
    return f"{rate:g} ({count} of {len(reasons)} blew up)" if count else f"{rate:g}"


def noted(blow_ups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The note below a table on the arms whose trainings blew up at their own rate; none where no training did."""
    counts = {name: f"{sum(map(bool, each))} of {len(each)}" for name, each in blow_ups.items() if any(each)}
    return (f"Blew up: {', '.join(f'{name} ({count})' for name, count in counts.items())}. {_RULE}",) if counts else ()


def _reason(tried: Tried, rate: float, seed: int, before: float, lost: float) -> str:
    loss = tried[rate][seed]
    others = [other for i, other in enumerate(tried[rate]) if i != seed and math.isfinite(other)]
    if not math.isfinite(loss):
        return f"calibration loss {loss}"
    if loss >= before:
        return f"calibration loss {loss:.3f}, no lower than before training ({before:.3f})"
    if len(others) + 1 < FEWEST or loss <= median(others) + lost * (before - median(others)):
        return ""
    if any(tried[lower][seed] >= loss for lower in tried if lower < rate):
        return ""
    return f"calibration loss {loss:.3f}, where the arm's other seeds have {median(others):.3f} (median)"
