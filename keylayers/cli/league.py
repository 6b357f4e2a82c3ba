"""`keylayers league`: what was typed, as a league to play, and its page."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from keylayers.cli.terminal import UNFINISHED, quiet_libraries, redact_paths, say
from keylayers.errors import BadInput

PAGE, FIGURES = "league.md", "league.json"


def run_league(options: Mapping[str, Any]) -> None:
    """Plays the league and prints its page."""
    budgets = shares(options["budget"])
    if options["seeds"] < 2:
        raise BadInput(f"--seeds {options['seeds']}: expected at least 2, without which nothing has an interval.")
    if options["processes"] < 1:
        raise BadInput(f"--processes {options['processes']}: expected at least 1.")
    folder = options["out"] or Path("runs") / "league"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    quiet_libraries()
    from keylayers.data.sources import source_files
    from keylayers.league.play import play_league
    from keylayers.league.standings import draw_standings
    from keylayers.league.tables import introduction, make_tables, picture_of, to_json
    from keylayers.runs import Given, open_run, write_json, write_text
    from keylayers.studies.pages import page

    league = _league(options, budgets)
    say(f"league on {options['model']}; results in {folder}")
    for task in league.tasks:
        task.inputs.load_splits()  # bad data is known before anything is computed
    if options["control"] is not None:
        replace(league.tasks[0].inputs, data=options["control"]).load_splits()
    settings = {key: value for key, value in options.items() if key not in ("out", "processes", "fresh")}
    read = [source_files(one) for one in (*(options["data"] or ()), options["control"])]
    given = Given((options["model"],), tuple(file for files in read for file in files))
    with open_run(folder, "league", settings, given=given, fresh=options["fresh"]) as run:
        for played in play_league(league, run, options["processes"]):
            write_json(folder / FIGURES, json.loads(redact_paths(json.dumps({"games": to_json(played)}))))
            text = redact_paths(page("The league of criteria", introduction(played), make_tables(played)))
            write_text(folder / PAGE, UNFINISHED + text)
            draw_standings(picture_of(played), folder)
            say(f"so far in {folder / PAGE}")
        write_text(folder / PAGE, text)
    say(text)
    say(f"stored in {folder / PAGE}, drawn in {folder / 'league.png'}; every figure behind it in {folder / FIGURES}")


def shares(text: str) -> tuple[float, ...]:
    """Shares written as `10%,30%`. Raises BadInput unless each is above 0 and below 100 %."""
    found = []
    for part in text.split(","):
        try:
            share = float(part.strip().removesuffix("%")) / 100
        except ValueError:
            share = 0.0
        if not part.strip().endswith("%") or not 0 < share < 1:
            raise BadInput(f"--budget {text}: {part.strip()!r} is no share; expected shares such as 10%,30%.")
        found.append(share)
    return tuple(dict.fromkeys(found))


def _league(options: Mapping[str, Any], budgets: tuple[float, ...]) -> Any:
    from keylayers.inputs.text import Inputs
    from keylayers.league.entrants import ENTRANTS, League, entrants_of
    from keylayers.studies.retraining import LearningRateGrid
    from keylayers.studies.text_task import Task
    from keylayers.training.adapters import LoraSettings
    from keylayers.training.trainer import TrainSettings

    rates = tuple(options["lr"] or (1e-2, 3e-2))
    training = TrainSettings(
        steps=options["steps"], batch_size=options["batch_size"], learning_rate=rates[0], save_every=10**9
    )
    lora = LoraSettings(options["rank"], 2.0 * options["rank"])
    shared = {key: options[key] for key in ("records", "held_out", "max_length", "template", "bad_share")}
    tasks = [
        Task(_name(data), Inputs(options["model"], data, **shared), training, lora, options["control"])
        for data in dict.fromkeys(options["data"])
    ]
    entrants = dict.fromkeys(name for one in options["criterion"] or () for name in entrants_of(one))
    return League(
        tuple(tasks),
        tuple(entrants) or tuple(ENTRANTS),
        budgets,
        options["seeds"],
        LearningRateGrid(rates),
    )


def _name(data: str) -> str:
    """Of a data set, for tables and file names."""
    return Path(data.removeprefix("bundled:")).name.split(".")[0]
