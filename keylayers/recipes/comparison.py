"""What a comparison of tuned selections shows: one arm per choice of layers, over seeds, as lines of a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keylayers.errors import Diverged
from keylayers.measures import paired_difference, t_interval
from keylayers.measures.blow_ups import noted, with_rate

COLUMNS = (
    "layers chosen by",
    "held-out loss",
    "first arm minus this",
    "layers",
    "of parameters",
    "trainable",
    "lr",
    "seconds",
    "peak MiB",
)


@dataclass(frozen=True)
class Arm:
    """One choice of layers, over all seeds."""

    policy: str
    losses: tuple[float, ...]
    """Held-out loss per seed, nats per token."""
    learning_rate: float
    layers: int
    """Mean over seeds: a random arm of a given parameter count may hold now more, now fewer."""
    size_share: float
    """Selected layers' share of all scored layers' parameters."""
    trainable: int
    seconds: float
    """Mean training time of a seed."""
    peak_bytes: int
    blew_up: tuple[str, ...] = ()
    """For each seed why its training is taken to have blown up; empty text where it did not."""

    @classmethod
    def of(cls, policy: str, rate: float, results: Sequence[Mapping[str, Any]], blew_up: Sequence[str] = ()) -> "Arm":
        """The arm of these results, one per seed. Raises Diverged if a held-out loss is not finite."""
        losses = tuple(result["test_loss"] for result in results)
        if not all(map(math.isfinite, losses)):
            raise Diverged(f"{policy}: the held-out loss is not finite; lower the learning rate ({rate:g}).")

        def mean(name: str) -> float:
            return sum(result[name] for result in results) / len(results)

        return cls(
            policy,
            losses,
            rate,
            round(sum(len(result["layers"]) for result in results) / len(results)),
            mean("size_share"),
            round(mean("trainable")),
            mean("seconds"),
            max(result["peak_bytes"] for result in results),
            tuple(blew_up),
        )


@dataclass(frozen=True)
class Comparison:
    """All arms, with the loss before tuning; the first arm is the one asked for."""

    base_loss: float
    arms: tuple[Arm, ...]

    def notes(self) -> tuple[str, ...]:
        """What the table's reader must know of trainings that blew up; none where none did."""
        return noted({arm.policy: arm.blew_up for arm in self.arms})

    def rows(self) -> list[tuple[str, ...]]:
        """Lines of a table, one per arm."""
        first = self.arms[0]
        return [
            (
                arm.policy,
                with_interval(arm.losses),
                "" if arm is first else _difference(first.losses, arm.losses),
                f"{arm.layers}",
                f"{arm.size_share:.1%}",
                f"{arm.trainable:,}",
                with_rate(arm.learning_rate, arm.blew_up),
                f"{arm.seconds:.1f}",
                f"{arm.peak_bytes / 2**20:,.0f}",
            )
            for arm in self.arms
        ]


def with_interval(losses: Sequence[float]) -> str:
    """The mean with the half width of its 95 % interval over seeds; one seed has none."""
    if len(losses) < 2:
        return f"{losses[0]:.4f}"
    interval = t_interval(losses)
    return f"{interval.estimate:.4f} ± {(interval.high - interval.low) / 2:.4f}"


def _difference(first: Sequence[float], other: Sequence[float]) -> str:
    if len(first) < 2:
        return f"{first[0] - other[0]:+.4f}"
    paired = paired_difference(first, other)
    half = (paired.interval.high - paired.interval.low) / 2
    return f"{paired.interval.estimate:+.4f} ± {half:.4f}"
