"""Commands that measure: a first look, a model before it is trusted, a run's page, papers, the league of criteria."""

from pathlib import Path
from typing import Annotated

import typer

from keylayers.cli import options as o
from keylayers.papers.registry import PAPERS


def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(help="Training seeds per arm.")] = 3,
    fresh: o.Fresh = False,
) -> None:
    """The whole story on the bundled model, in minutes: score three styles, compare, tune, measure."""
    from keylayers.cli.demo import run_demo

    run_demo(out, seeds, fresh)


def doctor(
    model: Annotated[str, typer.Argument(help="Hub id, folder, bundled:llama, or package.module:factory.")],
    weights: o.Weights = None,
    data: Annotated[str | None, typer.Option(help="Data to run the model on; without it inputs are random.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Score file, to forecast the costs of what it selects.")] = None,
    select: Annotated[
        str | None, typer.Option(help="Policy whose costs are forecast; default: top:30% of the scores, or random.")
    ] = None,
    seq: Annotated[int, typer.Option(help="Tokens per sequence that costs are forecast for.")] = 128,
    batch: Annotated[int, typer.Option(help="Sequences per batch that costs are forecast for.")] = 4,
    records: Annotated[int, typer.Option(help="Calibration records that scoring is forecast for.")] = 256,
    rank: o.Rank = 8,
    sample: Annotated[int, typer.Option(help="Number of layers that a costly gate looks at, at most.")] = 12,
    out: Annotated[Path | None, typer.Option(help="FILE.json to store all findings in.")] = None,
    config: o.Config = None,
    template: o.Template = "auto",
    bad_share: o.BadShare = 0.01,
    dtype: o.Dtype = "auto",
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Examine a model before trusting it: correctness gates, what each command can do, time and memory.

    Exit status 1 if a gate fails.
    """
    from keylayers.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(o.given(locals())))


def report(
    run: Annotated[Path, typer.Argument(help="Run folder, or a folder of runs such as the demo's.")],
    out: Annotated[Path | None, typer.Option(help="Page to write; default: RUN/report.html.")] = None,
) -> None:
    """One HTML page of a run, to open from disk: the answer, heatmap, ranking, curves, costs, settings."""
    from keylayers.cli.report import run_report

    run_report(run, out)


def verify(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, tuned models of runs, score files.")],
) -> None:
    """Read everything that a run stored and name each file that is not what was written.

    Exit status 1 if a file is damaged.
    """
    from keylayers.cli.verify import run_verify

    raise typer.Exit(run_verify(runs))


def reproduce(
    paper: Annotated[str, typer.Argument(help=f"Which paper: {', '.join(PAPERS)}.")],
    scale: Annotated[
        str, typer.Option(help="How much of it: smoke (minutes), small (hours), full; ila: also masks.")
    ] = "smoke",
    out: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    processes: Annotated[int, typer.Option(help="Number of processes that compute side by side.")] = 2,
    fresh: o.Fresh = False,
    config: o.Config = None,
) -> None:
    """A paper's experiment with controls, beside its published figures."""
    from keylayers.cli.reproduce import run_reproduce

    run_reproduce(paper, scale, out, processes, fresh)


def league(
    model: o.Model,
    data: Annotated[list[str], typer.Option(help=f"{o.DATA} Repeat it for several.")],
    budget: Annotated[str, typer.Option(help="Budgets, as shares of what LoRA adds to all layers.")] = "10%,30%",
    criterion: Annotated[
        list[str] | None, typer.Option(help="Let only entrants of this criterion play; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Independent procedures per entrant, at least 2.")] = 3,
    lr: Annotated[
        list[float] | None,
        typer.Option(help="Learning rates to choose from, each tried with every seed; default 1e-2, 3e-2."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of every training.")] = 60,
    batch_size: o.BatchSize = 8,
    rank: o.Rank = 8,
    records: o.Records = 1024,
    held_out: Annotated[int, typer.Option(help="Most calibration and most test records.")] = 96,
    max_length: o.MaxLength = 192,
    template: o.Template = "auto",
    bad_share: o.BadShare = 0.01,
    control: Annotated[str | None, typer.Option(help="Unrelated data, whose loss tells what is forgotten.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/league.")] = None,
    processes: Annotated[int, typer.Option(help="Number of processes that compute side by side.")] = 2,
    fresh: o.Fresh = False,
    config: o.Config = None,
) -> None:
    """Every criterion, the same question, equal budgets: which picks the best layers, and at what cost?"""
    from keylayers.cli.league import run_league

    run_league(o.given(locals()))
