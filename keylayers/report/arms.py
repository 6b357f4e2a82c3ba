"""The arms of a tuning run as its folder holds them: held-out losses, what each trained, its learning curves."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from keylayers.errors import BadInput
from keylayers.measures import Interval, PairedDifference, paired_difference, t_interval
from keylayers.runs import digest, read_json

PART = re.compile(r"(?P<stem>.+)-lr(?P<rate>[-+.0-9e]+)-seed(?P<seed>[0-9]+)", re.DOTALL)


@dataclass(frozen=True)
class Curve:
    """Training losses of one run of a training loop, one per step, in nats per token."""

    label: str
    seed: int | None
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Arm:
    """One choice of layers over the seeds that are finished."""

    policy: str
    losses: tuple[float, ...]
    """Held-out loss per seed, nats per token."""
    learning_rate: float
    layers: int
    size_share: float
    """Share of the scored layers' parameters that lie in the selected ones, in [0, 1]."""
    trainable: int
    seconds: float
    """Training time of one seed, mean."""
    peak_bytes: int
    chosen: tuple[tuple[str, ...], ...] = ()
    """Names of the trained layers, one tuple per seed; empty where the parts are gone."""
    curves: tuple[Curve, ...] = ()
    blew_up: tuple[str, ...] = ()
    """For each seed why its training is taken to have blown up; empty text where it did not."""

    @property
    def mean(self) -> float:
        """Mean held-out loss over seeds."""
        return sum(self.losses) / len(self.losses)

    @property
    def interval(self) -> Interval | None:
        """95 % interval of the mean over seeds; None for one seed."""
        return t_interval(self.losses) if len(self.losses) > 1 else None

    def minus(self, other: "Arm") -> PairedDifference | None:
        """This arm's loss minus the other's, paired by seed; None unless both have the same two or more seeds."""
        if len(self.losses) != len(other.losses) or len(self.losses) < 2:
            return None
        return paired_difference(self.losses, other.losses)

    @property
    def is_random(self) -> bool:
        """Whether chance chose its layers."""
        return "random" in self.policy.split(":")


@dataclass(frozen=True)
class Tuning:
    """The arms of one tuning run; the first is the one that was asked for."""

    base_loss: float | None
    arms: tuple[Arm, ...]
    gaps: tuple[str, ...] = ()
    """What is missing or damaged, in words."""


def read_tuning(folder: Path, settings: Mapping[str, Any]) -> Tuning:
    """The arms of a run folder; of an unfinished run those that are there, with the gaps named."""
    gaps: list[str] = []
    parts = _parts(folder, gaps)
    base = value.get("loss") if (value := _part(folder / "parts" / "base.json", gaps)) else None
    file = folder / "comparison.json"
    arms: list[Arm] = []
    if file.is_file():
        try:
            stored = read_json(file)
            base = float(stored["base_loss"])
            for record in stored["arms"]:
                arms.append(_stored_arm(record, parts.get(stem_of(record["policy"]), {})))
            return Tuning(base, tuple(arms), tuple(gaps))
        except (BadInput, KeyError, TypeError, ValueError) as error:
            gaps.append(f"comparison.json cannot be used ({error}); the arms are read from parts/ instead")
            arms = []
    seeds = settings.get("seeds", 1)
    for policy in dict.fromkeys((str(settings.get("select", "")), *map(str, settings.get("against") or ()))):
        found = parts.get(stem_of(policy), {})
        if not found:
            gaps.append(f"arm {policy}: not trained yet")
            continue
        rate = max(found, key=lambda rate: (len(found[rate]), -_calibration(found[rate])))
        results = [found[rate][seed] for seed in sorted(found[rate])]
        arms.append(_arm_of(policy, rate, results))
        if len(results) < seeds:
            gaps.append(f"arm {policy}: {len(results)} of {seeds} seeds are trained")
    return Tuning(base, tuple(arms), tuple(gaps))


def stem_of(policy: str) -> str:
    """The head of the part names of an arm, as the tuning recipe makes it; a test holds both together."""
    plain = "".join(c if c.isalnum() or c in "-=." else "_" for c in policy.replace("%", "pc"))
    return plain if len(plain) <= 120 else f"{plain[:100]}-{digest(policy)[:16]}"


Results = dict[float, dict[int, dict[str, Any]]]


def _parts(folder: Path, gaps: list[str]) -> dict[str, Results]:
    """Results by stem, learning rate and seed."""
    found: dict[str, Results] = {}
    for path in sorted((folder / "parts").glob("*.json")):
        name = PART.fullmatch(path.stem)
        value = _part(path, gaps) if name else None
        if name is None or value is None or "diverged" in value:  # of one of several rates, which was passed over
            continue
        try:
            rate, seed = float(name["rate"]), int(name["seed"])
            _arm_of("", rate, [value])  # all that is read later is there
        except (KeyError, TypeError, ValueError):
            gaps.append(f"parts/{path.name} does not hold an arm's results")
            continue
        found.setdefault(name["stem"], {}).setdefault(rate, {})[seed] = value
    return found


def _part(path: Path, gaps: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = read_json(path).get("value")
    except BadInput as error:
        gaps.append(str(error))
        return None
    return value if isinstance(value, dict) else None


def _stored_arm(record: Mapping[str, Any], found: Results) -> Arm:
    """An arm of comparison.json with the layers and curves of its parts, where they are still there."""
    rate, losses = float(record["learning_rate"]), tuple(map(float, record["losses"]))
    results = [found[rate][seed] for seed in sorted(found.get(rate, {})) if seed < len(losses)]
    return Arm(
        policy=str(record["policy"]),
        losses=losses,
        learning_rate=rate,
        layers=int(record["layers"]),
        size_share=float(record["size_share"]),
        trainable=int(record["trainable"]),
        seconds=float(record["seconds"]),
        peak_bytes=int(record["peak_bytes"]),
        chosen=tuple(tuple(map(str, result["layers"])) for result in results),
        curves=_curves(str(record["policy"]), results),
        blew_up=tuple(map(str, record.get("blew_up", ()))),
    )


def _arm_of(policy: str, rate: float, results: list[dict[str, Any]]) -> Arm:
    def mean(name: str) -> float:
        return sum(float(result[name]) for result in results) / len(results)

    chosen = tuple(tuple(map(str, result["layers"])) for result in results)
    return Arm(
        policy=policy,
        losses=tuple(float(result["test_loss"]) for result in results),
        learning_rate=rate,
        layers=round(sum(map(len, chosen)) / len(chosen)),
        size_share=mean("size_share"),
        trainable=round(mean("trainable")),
        seconds=mean("seconds"),
        peak_bytes=max(int(result["peak_bytes"]) for result in results),
        chosen=chosen,
        curves=_curves(policy, results),
    )


def _curves(policy: str, results: list[dict[str, Any]]) -> tuple[Curve, ...]:
    return tuple(Curve(policy, seed, tuple(map(float, result["train_losses"]))) for seed, result in enumerate(results))


def _calibration(results: dict[int, dict[str, Any]]) -> float:
    return fmean(float(result.get("calibration_loss", 0.0)) for result in results.values())
