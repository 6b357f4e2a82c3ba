"""Commands that say which layers matter: what there is, scores, agreement, how many are enough."""

from pathlib import Path
from typing import Annotated

import typer

from keylayers.cli import options as o


def layers(
    model: Annotated[str, typer.Argument(help="Hub id, folder, bundled:llama, or package.module:factory.")],
    granularity: o.Granularity = "linear",
    config: o.Config = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """What can be scored: the layers of a model, from its configuration alone."""
    from keylayers.cli.show import show_layers

    show_layers(model, granularity, trust_remote_code)


def score(
    model: o.Model,
    criteria: Annotated[
        list[str] | None,
        typer.Argument(help="Criteria; `keylayers criteria` lists them. Default: path_integral at its midpoint."),
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"{o.DATA} Criteria that look at no data need none.")] = None,
    tuned: Annotated[
        str | None,
        typer.Option(
            help="A tuned checkpoint, a peft adapter or an earlier scoring run; without it, stage 1 trains LoRA."
        ),
    ] = None,
    sibling: Annotated[
        str | None, typer.Option(help="A second model of the same family, such as the tuned one itself.")
    ] = None,
    measure: Annotated[
        str,
        typer.Option(
            help="What ablation and shapley compare: loss, tokens or answers (shares that are wrong), or generated."
        ),
    ] = "loss",
    out: Annotated[
        Path | None, typer.Option(help="Run folder, or FILE.json for the scores; default: runs/score-MODEL-DATA.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of a criterion, as KEY=VALUE; may be repeated.")
    ] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            help="What counts as a layer: block, sublayer, linear, expert, router, conv or skip. Default: linear, or "
            "what the criteria score."
        ),
    ] = None,
    weights: o.Weights = None,
    columns: o.Columns = None,
    records: o.Records = None,
    score_records: Annotated[
        int | None,
        typer.Option(
            help="Most records that the scores rest on; default 256. Where stage 1 trains, others than it trains on; a "
            "tuned model is scored on calibration records alone unless this is given."
        ),
    ] = None,
    max_length: o.MaxLength = None,
    steps: Annotated[int, typer.Option(help="Training steps of stage 1.")] = 200,
    lr: Annotated[float, typer.Option(help="Learning rate of stage 1.")] = 3e-3,
    batch_size: o.BatchSize = 16,
    rank: o.Rank = 8,
    seed: Annotated[int, typer.Option(help="Seed of stage 1.")] = 0,
    stop_early: Annotated[
        bool, typer.Option("--stop-early", help="Stop stage 1 when the ranking of the layers has settled.")
    ] = False,
    settled: Annotated[
        float | None,
        typer.Option(help="With --stop-early: agreement of successive rankings that counts as settled; default 0.9."),
    ] = None,
    fresh: o.Fresh = False,
    config: o.Config = None,
    template: o.Template = "auto",
    bad_share: o.BadShare = 0.01,
    dtype: o.Dtype = "auto",
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Score a model's layers on a data set."""
    from keylayers.cli.runs import run_score

    run_score(criteria, o.given(locals()))


def compare(
    files: Annotated[
        list[Path], typer.Argument(help="Two or more score files, scoring runs or hub user/repo; or two leagues.")
    ],
    top: Annotated[str, typer.Option(help="Share of layers in the top set.")] = "75%",
    acted: Annotated[str, typer.Option(help="Which set is acted on: top (tuned) or bottom (frozen).")] = "top",
    plot: Annotated[Path | None, typer.Option(help="Heatmap of scores and agreement, .svg or .png.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/compare-DIGEST.")] = None,
    fresh: o.Fresh = False,
    config: o.Config = None,
) -> None:
    """How far rankings agree, beside what chance alone would give."""
    from keylayers.cli.show import show_agreement

    show_agreement(files, top, acted, plot, out, fresh)


def share(
    scores: Annotated[str, typer.Argument(help="Score file, run with one criterion, score folder, or hub user/repo.")],
    tuned: Annotated[str, typer.Option(help="A tuned checkpoint, a peft adapter or an earlier run.")],
    model: o.Model,
    data: o.Data,
    within: Annotated[str, typer.Option(help="Share of the gain that may be lost.")] = "5%",
    of: Annotated[
        str, typer.Option(help="What shares of the layers are counted in: lora, weights or layers.")
    ] = "lora",
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/share-SCORES-DIGEST.")] = None,
    held_out: Annotated[int, typer.Option(help="Most calibration and most test records.")] = 256,
    points: Annotated[int, typer.Option(help="Sizes tried first, from 1 to all layers; up to 3 more follow.")] = 9,
    draws: Annotated[int, typer.Option(help="Random orders of the same kinds beside the ranking, at least 5.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the random orders.")] = 0,
    weights: o.Weights = None,
    columns: o.Columns = None,
    max_length: o.MaxLength = None,
    batch_size: o.BatchSize = 16,
    fresh: o.Fresh = False,
    config: o.Config = None,
    template: o.Template = "auto",
    bad_share: o.BadShare = 0.01,
    dtype: o.Dtype = "auto",
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """How many layers are enough: the fewest whose changes keep what tuning gained, beside random ones."""
    from keylayers.cli.share import run_share

    run_share(o.given(locals()))


def transfer(
    scores: Annotated[str, typer.Argument(help="Score file, run with one criterion, score folder, or hub user/repo.")],
    to: Annotated[str, typer.Option(help="The other model: hub id, folder (config.json suffices), bundled:llama, ...")],
    out: Annotated[Path | None, typer.Option(help="FILE.json to store the ranking in; default: only show it.")] = None,
    config: o.Config = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """A ranking for another model's layers, by role and relative depth; its weights are not needed."""
    from keylayers.cli.transfer import run_transfer

    run_transfer(scores, to, out, trust_remote_code)


def criteria() -> None:
    """The criteria and what each computes."""
    from keylayers.cli.show import show_criteria

    show_criteria()
