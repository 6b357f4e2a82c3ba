"""The page itself: one HTML file with its style and drawings inside, which loads nothing and needs no script."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keylayers.files.checked import write_text
from keylayers.report import words
from keylayers.report.answers import answer
from keylayers.report.arms import Curve
from keylayers.report.choice import choose, trial
from keylayers.report.collect import STAGE_ONE, Collected, collect_runs
from keylayers.report.comparisons import agreement_views, arms_view
from keylayers.report.limits import state_limits
from keylayers.report.rankings import kind_rows, ranking_views, why
from keylayers.report.shapes import Chart, charts
from keylayers.runs import note

if TYPE_CHECKING:
    from jinja2 import Environment

NAME = "report.html"
TITLES = {
    "tune": "Tuning selected layers",
    "score": "Which layers matter",
    "harden": "Adversarial training of few layers",
    "cleanse": "A skip connection turned down",
    "screen": "Inputs unlike their class",
}
SHOWN = 30
"""Rows of a ranking that need no click."""


@dataclass(frozen=True)
class Written:
    """Where a report lies."""

    page: Path
    plots: tuple[Path, ...]


def write_report(path: str | Path, out: str | Path | None = None) -> Written:
    """Writes the page of a run folder (or of the runs inside a folder), and beside it the plots as SVG and PNG.

    The page is RUN/report.html and the plots RUN/report/*, or `out` and the folder of that name without its suffix.
    Plots that cannot be drawn are noted on standard error, and the page says nothing of them.

    Raises:
        BadInput: where there is no run, a damaged run.json, or the place cannot be written.
    """
    collected = collect_runs(path)
    page = Path(out) if out is not None else collected.path / NAME
    folder = page.with_suffix("")
    plots: tuple[Path, ...] = ()
    try:
        from keylayers.report.plots import draw

        plots = draw(collected, choose(collected), folder)
    except Exception as error:  # a picture is no reason to lose the page, whatever matplotlib stumbles over
        note(f"the plots of the report could not be drawn ({type(error).__name__}: {error}); the page is whole")
    write_text(page, render(collected, tuple(f"{folder.name}/{plot.name}" for plot in plots)))
    return Written(page, plots)


def render(collected: Collected, plots: tuple[str, ...] = ()) -> str:
    """The page as HTML; `plots` are the relative places of the pictures it names."""
    choice = choose(collected)
    agreement, refused = agreement_views(collected)
    pairs = tuple(pair for view in agreement for table in view.tables for pair in table.pairs)
    tuning = collected.tuned.tuning if collected.tuned else None
    head = answer(collected, choice, pairs)
    text = (
        _environment()
        .get_template("page.html")
        .render(
            title=_title(collected),
            collected=collected,
            states=_states(collected),
            answer=head,
            arms=arms_view(tuning) if tuning else None,
            base_loss=tuning.base_loss if tuning else None,
            choice=choice,
            compared=collected.runs[0].command == "compare",
            why=why(choice) if choice else "",
            trial=trial(collected, choice) if choice else None,
            kinds=kind_rows(choice) if choice else (),
            rankings=ranking_views(collected, choice),
            shown=SHOWN,
            agreement=agreement,
            refused=refused,
            learning=_learning(collected),
            limits=(*state_limits(collected, choice), *head.limits),
            data=_data(collected),
            commands=_commands(collected),
            plots=plots,
            version=_version(),
        )
    )
    return text.encode(errors="replace").decode()


@lru_cache(maxsize=1)
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_clean,
    )
    made.filters |= {
        "loss": words.loss,
        "number": words.number,
        "share": words.share,
        "whole": words.whole,
        "seconds": words.seconds,
        "mebibytes": words.mebibytes,
        "flat": words.flat,
        "policy_words": words.policy_words,
        "plural": words.plural,
    }
    return made


def _clean(value: Any) -> Any:
    """Text without characters that no page can show; markup that is already escaped stays what it is."""
    return words.printable(value) if type(value) is str else value


def _title(collected: Collected) -> str:
    run = collected.tuned or collected.runs[0]
    if run.command == "compare":
        return "Comparison of rankings"
    what = TITLES.get(run.command, run.command)
    model, data = run.setting("inputs", "model"), run.setting("inputs", "data") or run.setting("inputs", "images")
    return f"{what}: {model}" + (f" on {data}" if data else "")


@dataclass(frozen=True)
class State:
    """A run that did not end as it should, or lacks something."""

    name: str
    words: str
    gaps: tuple[str, ...]


def _states(collected: Collected) -> tuple[State, ...]:
    found = []
    for run in collected.runs:
        if run.finished and not run.gaps:
            continue
        error = run.last.get("error")
        text = {
            "finished": "finished, but not everything can be shown",
            "running": "still running, or killed: this page shows what was there when it was made",
            "interrupted": "interrupted; the same command resumes it",
        }.get(run.status, run.status)
        found.append(State(run.name, text + (f": {error}" if error else ""), run.gaps))
    return tuple(found)


def _learning(collected: Collected) -> tuple[tuple[str, tuple[Chart, ...]], ...]:
    """Stages 1 and 2 of every scoring run, and the arms of the tuning run, each with axes in common."""
    several = sum(bool(run.curves) for run in collected.runs) > 1
    first = [(run.name if several else STAGE_ONE, run.curves) for run in collected.runs if run.curves]
    masks = [(run.name if several else "gates", run.mask_curves) for run in collected.runs if run.mask_curves]
    tuning = collected.tuned.tuning if collected.tuned else None
    arms: list[tuple[str, tuple[Curve, ...]]] = [(arm.policy, arm.curves) for arm in tuning.arms] if tuning else []
    found = (
        (STAGE_ONE[0].upper() + STAGE_ONE[1:], charts(first)),
        ("Stage 2: masks, one line per seed", charts(masks)),
        ("Arms of the comparison, one line per seed", charts(arms)),
    )
    return tuple((title, drawn) for title, drawn in found if drawn)


def _data(collected: Collected) -> tuple[dict[str, Any], ...]:
    """Every data set that a score file names, once; then the files that were given, where none of these is of them."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for ranking in collected.rankings:
        for one in ranking.scores.provenance.data:
            key = (str(one.get("id")), str(one.get("split")), str(one.get("sha256")))
            found.setdefault(key, one)
    named = {one.get("id") for one in found.values()}
    given = {name: sha for run in collected.runs for name, sha in (run.setting("given") or {}).items()}
    files = [{"id": name, "split": "file", "sha256": sha} for name, sha in given.items() if name not in named]
    return (*found.values(), *files)


def _commands(collected: Collected) -> tuple[tuple[str, bool], ...]:
    """The commands that made the runs, each once, and whether they are this program's."""
    lines = [words.command_line(run.last.get("argv") or ()) for run in collected.runs]
    return tuple(dict.fromkeys(line for line in lines if line[0]))


def _version() -> str:
    from keylayers import __version__

    return __version__
