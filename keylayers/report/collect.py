"""A run folder read into values for its report; what is missing or damaged is named, not fatal."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keylayers.errors import BadInput, KeylayersError
from keylayers.files import explained
from keylayers.report.arms import Curve, Tuning, read_tuning
from keylayers.runs import read_json, read_log, read_run
from keylayers.scores import LayerScores, load
from keylayers.scores.files import FORMAT

STAGE_ONE = "stage 1, LoRA on all layers"
CUT = 0.75
"""Share of layers whose agreement is shown where a run does not say: what a comparison takes by default."""
HEAD = 4096  # bytes of a JSON file within which its format is named


@dataclass(frozen=True)
class Ranking:
    """The scores of one file."""

    label: str
    file: str
    """Where it lies, relative to the folder that the report is about."""
    scores: LayerScores

    @property
    def identity(self) -> tuple[str, ...]:
        """What a copy of it has in common with it: scores and data."""
        return (self.scores.sha256, *(str(one.get("sha256")) for one in self.scores.provenance.data))


@dataclass(frozen=True)
class Cost:
    """What one piece of work took."""

    what: str
    seconds: float | None
    peak_bytes: int | None = None
    trainable: int | None = None
    size_share: float | None = None


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path
    name: str
    """The folder's own name."""
    command: str
    status: str
    seconds: float | None
    settings: dict[str, Any]
    sessions: tuple[dict[str, Any], ...]
    rankings: tuple[Ranking, ...] = ()
    curves: tuple[Curve, ...] = ()
    """Of stage 1."""
    mask_curves: tuple[Curve, ...] = ()
    """Of stage 2: the loss of each step's batch while masks are learnt, one curve per seed."""
    tuning: Tuning | None = None
    costs: tuple[Cost, ...] = ()
    gaps: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether the run ended as it should."""
        return self.status == "finished"

    @property
    def last(self) -> dict[str, Any]:
        """The last session: its argv, versions, machine, git commit and error."""
        return self.sessions[-1] if self.sessions else {}

    def setting(self, *names: str) -> Any:
        """A setting by its path; None where there is none."""
        value: Any = self.settings
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value


@dataclass(frozen=True)
class Collected:
    """All runs that one report is about: one, or those inside a folder such as the demo's."""

    path: Path
    runs: tuple[Run, ...]

    rankings: tuple[Ranking, ...] = field(init=False)
    tuned: Run | None = field(init=False)
    """The first tuning run with a result."""

    def __post_init__(self) -> None:
        unique: dict[tuple[str, ...], Ranking] = {}
        for run in self.runs:
            for ranking in run.rankings:
                unique.setdefault(ranking.identity, ranking)  # a tuning run keeps a copy of its scores
        object.__setattr__(self, "rankings", tuple(unique.values()))
        tuned = (run for run in self.runs if run.tuning is not None and run.tuning.arms)
        object.__setattr__(self, "tuned", next(tuned, None))


def collect_runs(path: str | Path) -> Collected:
    """Everything in a run folder, or in the run folders right inside this one, that a report shows.

    Raises:
        BadInput: where there is no run.json, or a damaged one.
    """
    folder = Path(path)
    if (folder / "run.json").is_file():
        return Collected(folder, (_read(folder, folder),))
    if not folder.is_dir():
        raise BadInput(f"{str(path)!r} is no folder; give a run folder, as score, tune or compare make one")
    inside = sorted((one.parent for one in folder.glob("*/run.json")), key=lambda one: (_began(one), one.name))
    if not inside:
        raise BadInput(
            f"{str(path)!r} holds no run.json, nor does a folder inside it; give a run folder, as score, tune "
            "or compare make one"
        )
    return Collected(folder, tuple(_read(one, folder) for one in inside))


def _began(folder: Path) -> float:
    times = (event.get("time") for event in read_log(folder / "log.jsonl"))
    return next((float(time) for time in times if isinstance(time, int | float)), 0.0)


def _read(folder: Path, root: Path) -> Run:
    """What a run stored. A record is sealed, but somebody may have rewritten it and sealed it again."""
    with explained(f"{str(folder / 'run.json')!r} says what no run records", "make that run again"):
        return _as_recorded(folder, root)


def _as_recorded(folder: Path, root: Path) -> Run:
    record = read_run(folder)
    settings = record.get("settings") if isinstance(record.get("settings"), dict) else {}
    assert settings is not None
    sessions = tuple(one for one in record.get("sessions") or () if isinstance(one, dict))
    gaps: list[str] = []
    rankings = _rankings(folder, root, settings, gaps)
    stage_one = _stage_one(folder, gaps)
    tuning = read_tuning(folder, settings) if record.get("command") == "tune" else None
    if record.get("command") == "score":
        present = {ranking.scores.criterion for ranking in rankings}
        gaps += [f"{name}: not scored yet" for name in settings.get("criteria") or () if name not in present]
    return Run(
        path=folder,
        name=folder.resolve().name,
        command=str(record.get("command")),
        status=str(record.get("status")),
        seconds=record.get("seconds") if isinstance(record.get("seconds"), int | float) else None,
        settings=settings,
        sessions=sessions,
        rankings=rankings,
        curves=stage_one[0],
        mask_curves=_mask_curves(rankings) if record.get("command") == "score" else (),
        tuning=tuning,
        costs=(*stage_one[1], *_costs(str(record.get("command")), rankings, tuning)),
        gaps=(*gaps, *(tuning.gaps if tuning else ())),
    )


def _rankings(folder: Path, root: Path, settings: Mapping[str, Any], gaps: list[str]) -> tuple[Ranking, ...]:
    """The score files of the folder, in the order its settings name them."""
    found = []
    labels = settings.get("labels") if isinstance(settings.get("labels"), list) else []
    for path in [*sorted(folder.glob("*.json")), *sorted((folder / "scores").glob("*.json"))]:
        if FORMAT not in _head(path):
            continue
        try:
            scores = load(path)
        except KeylayersError as error:
            gaps.append(str(error))
            continue
        copied = path.parent != folder and path.stem.isdecimal() and int(path.stem) <= len(labels or ())
        label = str((labels or [])[int(path.stem) - 1]) if copied else scores.criterion
        found.append(Ranking(label, str(path.relative_to(root)), scores))
    asked = list(settings.get("criteria") or ())
    order = {str(name): place for place, name in enumerate(asked)}
    return tuple(sorted(found, key=lambda one: order.get(one.scores.criterion, len(order))))


def _head(path: Path) -> str:
    if not os.path.isfile(path):
        return ""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD).decode(errors="replace")
    except OSError:
        return ""


def _stage_one(folder: Path, gaps: list[str]) -> tuple[tuple[Curve, ...], tuple[Cost, ...]]:
    path = folder / "parts" / "stage1.json"
    if not path.is_file():
        return (), ()
    try:
        value = read_json(path)["value"]
        curve = Curve(STAGE_ONE, None, tuple(map(float, value["losses"])))
        return (curve,), (Cost(STAGE_ONE, float(value["train_seconds"]), int(value["peak_bytes"])),)
    except (BadInput, KeyError, TypeError, ValueError) as error:
        gaps.append(f"the learning curve of stage 1 cannot be read ({error})")
        return (), ()


def _mask_curves(rankings: tuple[Ranking, ...]) -> tuple[Curve, ...]:
    """Of every ranking that states the losses of its steps."""
    found = []
    for one in rankings:
        settings = one.scores.provenance.settings
        losses, first = settings.get("losses"), settings.get("seed")
        for seed, curve in enumerate(
            losses if isinstance(losses, list) else (), first if isinstance(first, int) else 0
        ):
            if isinstance(curve, list) and curve and all(isinstance(value, int | float) for value in curve):
                found.append(Curve(one.label, seed, tuple(map(float, curve))))
    return tuple(found)


def _costs(command: str, rankings: tuple[Ranking, ...], tuning: Tuning | None) -> tuple[Cost, ...]:
    """What this run itself took; the scores that another run made cost nothing here."""
    if command == "score":
        return tuple(Cost(f"scoring, {one.label}", one.scores.provenance.seconds) for one in rankings)
    return tuple(
        Cost(f"training {arm.policy}, per seed", arm.seconds, arm.peak_bytes, arm.trainable, arm.size_share)
        for arm in (tuning.arms if tuning else ())
    )
