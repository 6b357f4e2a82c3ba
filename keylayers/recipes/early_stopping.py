"""Stage 1 that stops when the ranking it leads to has settled: a cheap look at some steps, kept in the run folder."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from keylayers.criteria.path_integral import PathIntegral, score_path_integral
from keylayers.criteria.protocol import Evidence
from keylayers.data.tokenisation import Examples
from keylayers.errors import BadInput
from keylayers.files.atomic import make_folder
from keylayers.layers.deltas import Deltas
from keylayers.layers.layer import Layer
from keylayers.recipes.early_stopping_text import look_in_words
from keylayers.runs import RunFolder, note, read_json
from keylayers.scores.files import load, save
from keylayers.scores.rank_convergence import Move, Rule, has_settled, moved
from keylayers.training.adapters import LoraSettings
from keylayers.training.stage_one import learn_until
from keylayers.training.trainer import Report, TrainLog, TrainSettings

SETTLING = "settling"
"""The part of a run folder that says what was decided, and why."""
LOOKS = "looks"
"""Where in a run folder the rankings of the looks are kept."""


@dataclass(frozen=True)
class StopEarly:
    """When stage 1 looks at the ranking, and when it may stop before its last step."""

    rule: Rule = field(default_factory=Rule)
    milestones: tuple[float, ...] = (0.05, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0)
    """Shares of the steps after which it looks."""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.milestones))
        if not self.milestones or not rising or not 0 < self.milestones[0] <= self.milestones[-1] <= 1:
            raise BadInput(
                f"milestones {list(self.milestones)}: expected rising shares of the steps, above 0, at most 1."
            )

    def steps(self, training: TrainSettings) -> tuple[int, ...]:
        """After which steps it looks; the last of all is always among them."""
        asked = {max(1, round(share * training.steps)) for share in self.milestones}
        return (*sorted(step for step in asked if step < training.last_step), training.last_step)


def learn_until_settled(
    asked: StopEarly,
    run: RunFolder,
    folder: Path,
    evidence: Evidence,
    adapted: Sequence[Layer],
    scored: Sequence[Layer],
    examples: Examples,
    *,
    lora: LoraSettings,
    training: TrainSettings,
    report: Report,
) -> tuple[Deltas, TrainLog]:
    """`learn_deltas`, stopped where the ranking of the scored layers has settled; the log has the seconds of all parts.

    A look scores the deltas so far by the midpoint gradient (`path_integral` with one point: one backward pass and two
    forward passes over the evidence's data). Its ranking is kept as `looks/step-N.json`, what it said as a part of the
    run, the whole as the part `settling`. A resumed run looks only where none has looked, so it stops where an
    uninterrupted one does.

    Raises:
        BadInput: before training, if there are fewer than two batches to look at.
    """
    # deviates: ILA trains until the loss is stable (Eq. 2); here until the ranking is, because that is what is wanted.
    assert evidence.model is not None and evidence.data is not None
    if len(evidence.data) < 2:
        raise BadInput(
            "stopping stage 1 early needs at least two batches of calibration records, for their agreement tells "
            f"whether the ranking has settled, but there is {len(evidence.data)}",
            "give more data",
            "take a smaller `batch_size`",
        )
    steps, per_step = asked.steps(training), training.batch_size * training.accumulate
    worth = sum(len(batch["input_ids"]) for batch in evidence.data) / per_step
    note(f"stage 1: each of at most {len(steps)} looks costs as much as about {worth:.0f} of the {steps[-1]} steps")
    watch = _Watch(asked, run, evidence, tuple(scored), steps, training)
    deltas, log, step = learn_until(
        evidence.model,
        adapted,
        examples,
        steps=steps,
        look=watch.look,
        answered={step: answer["stop"] for step, answer in watch.answers().items()},
        folder=folder,
        settings=training,
        scored=scored,
        lora=lora,
        report=report,
    )
    found = run.part(SETTLING, lambda: watch.summary(step))
    return deltas, TrainLog(log.losses, found["train_seconds"], log.peak_bytes, log.padding)


@dataclass
class _Watch:
    """The looks of one run: what they saw is in its folder, so that a resumed run goes on from there."""

    asked: StopEarly
    run: RunFolder
    evidence: Evidence
    layers: tuple[Layer, ...]
    steps: tuple[int, ...]
    training: TrainSettings
    since: float = field(default_factory=time.perf_counter)
    """When the look before ended, or the session began."""

    def look(self, step: int, deltas: Deltas, log: TrainLog) -> bool:
        """Whether to stop here; stored before training goes on."""
        answer = self.run.part(_name(step), lambda: self._answer(step, deltas, log))
        self.since = time.perf_counter()
        note(f"stage 1, step {step} of {self.training.steps}: {look_in_words(answer, self.asked.rule)}")
        return bool(answer["stop"])

    def answers(self) -> dict[int, dict[str, Any]]:
        """What the looks so far said, by step."""
        done = [step for step in self.steps if self.run.has_part(_name(step))]
        return {step: self.run.part(_name(step), _never) for step in done}

    def summary(self, stop: int) -> dict[str, Any]:
        """What was decided, the agreement at every look, and what looking cost beside what it saved."""
        answers = self.answers()
        curve = [
            {"step": step, **{key: answer[key] for key in ("since", "move", "reached", "stop")}}
            for step, answer in answers.items()
        ]
        trained, looked = (sum(one[key] for one in answers.values()) for key in ("train_seconds", "look_seconds"))
        settled = has_settled(_moves(answers), self.asked.rule)
        return {
            "stopped_after": stop,
            "steps": self.training.last_step,
            "settled": settled,
            "schedule_cut": stop < self.training.steps and not self.training.schedule.startswith("constant"),
            "schedule": self.training.schedule,
            "rule": asdict(self.asked.rule),
            "curve": curve,
            "train_seconds": round(trained, 3),
            "look_seconds": round(looked, 3),
            "saved_seconds": round(trained * (self.training.last_step - stop) / stop, 3),
        }

    def _answer(self, step: int, deltas: Deltas, log: TrainLog) -> dict[str, Any]:
        earlier = self.answers()
        scores = score_path_integral(replace(self.evidence, deltas=deltas), self.layers, PathIntegral(points=1))
        place = self._place(step)
        make_folder(place.parent)
        save(scores, place)
        before = max(earlier, default=None)
        move = None if before is None else moved(load(self._place(before)), scores, self.asked.rule)
        moves = [*_moves(earlier), *([] if move is None else [move])]
        spent = time.perf_counter() - self.since
        return {
            "since": before,
            "move": None if move is None else asdict(move),
            "reached": move is not None and move.reached,
            "stop": step < self.training.last_step and has_settled(moves, self.asked.rule),
            "train_seconds": round(log.seconds, 3),
            "look_seconds": round(max(0.0, spent - log.seconds), 3),  # with all that stopping and going on again takes
        }

    def _place(self, step: int) -> Path:
        return self.run.path / LOOKS / f"step-{step}.json"


def settling_of(folder: str | Path) -> dict[str, Any] | None:
    """What a run folder says about where its stage 1 stopped; None where it was not asked to stop early."""
    path = Path(folder) / "parts" / f"{SETTLING}.json"
    return read_json(path, value=dict)["value"] if path.is_file() else None


def _moves(answers: Mapping[int, Mapping[str, Any]]) -> list[Move]:
    return [Move.of(answer["move"]) for answer in answers.values() if answer["move"] is not None]


def _name(step: int) -> str:
    return f"look-{step}"


def _never() -> dict[str, Any]:
    raise AssertionError("the part is stored")
