"""The commands and their options; each calls one recipe."""

from pathlib import Path
from typing import Annotated, Any

import typer

from keylayers.cli import options as o
from keylayers.exports import TARGETS

app = typer.Typer(
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find which layers of a model matter for your data, and train only those.",
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(help="Training seeds per arm.")] = 3,
    fresh: o.Fresh = False,
) -> None:
    """The whole story on the bundled model, in minutes: score three styles, compare, tune, measure."""
    from keylayers.cli.demo import run_demo

    run_demo(out, seeds, fresh)


@app.command()
def layers(
    model: Annotated[str, typer.Argument(help="Hub id, folder, bundled:llama, or package.module:factory.")],
    granularity: o.Granularity = "linear",
    config: o.Config = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """What can be scored: the layers of a model, from its configuration alone."""
    from keylayers.cli.show import show_layers

    show_layers(model, granularity, trust_remote_code)


@app.command()
def score(
    criteria: Annotated[
        list[str] | None,
        typer.Argument(help="Criteria; `keylayers criteria` lists them. Default: path_integral at its midpoint."),
    ] = None,
    model: o.Model = "bundled:llama",
    data: o.Data = "bundled:pirate",
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
        typer.Option(help="What ablation and shapley compare: loss, tokens or answers (wrong ones), or generated."),
    ] = "loss",
    out: Annotated[Path | None, typer.Option(help="Run folder, or FILE.json for the scores.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="A criterion's setting: KEY=VALUE.")] = None,
    granularity: Annotated[
        str | None,
        typer.Option(
            help="block, sublayer, linear, expert, router, conv or skip; default linear, or what the criteria score."
        ),
    ] = None,
    weights: o.Weights = None,
    columns: o.Columns = None,
    records: o.Records = None,
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
    dtype: o.Dtype = "auto",
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Score a model's layers on a data set."""
    from keylayers.cli.runs import run_score

    run_score(criteria, o.given(locals()))


@app.command()
def compare(
    files: Annotated[list[Path], typer.Argument(help="Two or more score files, scoring runs or hub user/repo.")],
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


@app.command()
def tune(
    model: o.Model = "bundled:llama",
    data: o.Data = "bundled:pirate",
    scores: Annotated[Path | None, typer.Option(help="Score file or hub user/repo; random or last need none.")] = None,
    select: Annotated[str, typer.Option(help="Policy: top:30%, params:10%, last:4, blocks:3,4, ...")] = "top:30%",
    against: Annotated[list[str] | None, typer.Option(help="Another policy to run beside it; may be repeated.")] = None,
    method: Annotated[str, typer.Option(help="lora, qlora or full.")] = "lora",
    out: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    granularity: o.Granularity = "linear",
    weights: o.Weights = None,
    columns: o.Columns = None,
    records: o.Records = None,
    max_length: o.MaxLength = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 200,
    lr: Annotated[
        list[float] | None, typer.Option(help="Learning rate; several: each arm takes its best on calibration data.")
    ] = None,
    batch_size: o.BatchSize = 16,
    rank: o.Rank = 8,
    seeds: Annotated[int, typer.Option(help="Training seeds; two or more give intervals.")] = 1,
    checkpointing: Annotated[bool, typer.Option(help="Recompute activations: less memory, more time.")] = False,
    fresh: o.Fresh = False,
    config: o.Config = None,
    dtype: o.Dtype = "auto",
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Train only the selected layers; beside them, other choices at the same steps and seeds."""
    from keylayers.cli.runs import run_tune

    run_tune(o.given(locals()))


@app.command()
def share(
    scores: Annotated[str, typer.Argument(help="Score file, run with one criterion, score folder, or hub user/repo.")],
    tuned: Annotated[str, typer.Option(help="A tuned checkpoint, a peft adapter or an earlier run.")],
    model: o.Model = "bundled:llama",
    data: o.Data = "bundled:pirate",
    within: Annotated[str, typer.Option(help="Part of the gain that may be lost.")] = "5%",
    of: Annotated[str, typer.Option(help="What shares are counted in: lora, weights or layers.")] = "lora",
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
    dtype: o.Dtype = "auto",
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """How many layers are enough: the fewest whose changes keep what tuning gained, beside random ones."""
    from keylayers.cli.share import run_share

    run_share(o.given(locals()))


@app.command(epilog="\n\n".join(f"**{name}**: {what}" for name, what in TARGETS.items()))
def export(
    scores: Annotated[str, typer.Argument(help="Score file, run with one criterion, score folder, or hub user/repo.")],
    to: Annotated[list[str], typer.Option(help=f"May be repeated: {', '.join(TARGETS)}.")],
    select: Annotated[str, typer.Option(help="Policy: top:30%, params:10%, last:4, blocks:3,4, ...")] = "top:30%",
    model: Annotated[
        str | None, typer.Option(help="Base model, its config.json suffices; default: the one the scores name.")
    ] = None,
    tuned: Annotated[str | None, typer.Option(help="Tuned model, for targets that take layers from one.")] = None,
    rank: Annotated[int, typer.Option(help="Rank of LoRA adapters, for targets that have them.")] = 16,
    alpha: Annotated[
        float | None, typer.Option(help="LoRA's alpha, which scales by alpha / rank; default: twice the rank.")
    ] = None,
    ranks: Annotated[
        str, typer.Option(help="equal; by-score: in proportion to the score, with --rank as their mean.")
    ] = "equal",
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: standard output.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that say something else.")] = False,
    nearest: Annotated[
        bool, typer.Option("--nearest", help="If a target cannot express the selection: the nearest it can.")
    ] = False,
    config: o.Config = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """The selected layers as configuration of another tool, read back by that tool's own rule first."""
    from keylayers.cli.export import run_export

    run_export(scores, o.given(locals()))


@app.command()
def revert(
    model: Annotated[str, typer.Option(help="Base checkpoint folder, or bundled:llama.")],
    tuned: Annotated[str, typer.Option(help="Tuned checkpoint folder.")],
    scores: Annotated[Path, typer.Option(help="Score file, folder or hub user/repo.")],
    out: Annotated[Path, typer.Option(help="Folder for the new checkpoint.")],
    select: Annotated[str, typer.Option(help="Layers whose change stays.")] = "top:75%",
    config: o.Config = None,
) -> None:
    """Take back the changes of the layers outside a selection; no training, streamed from disk."""
    from keylayers.cli.runs import run_revert

    run_revert(model, tuned, scores, out, select)


@app.command()
def transfer(
    scores: Annotated[str, typer.Argument(help="Score file, run with one criterion, score folder, or hub user/repo.")],
    to: Annotated[str, typer.Option(help="The other model: hub id, folder (config.json suffices), bundled:llama, ...")],
    out: Annotated[Path | None, typer.Option(help="FILE.json for the ranking; default: only shown.")] = None,
    config: o.Config = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """A ranking for another model's layers, by role and relative depth; its weights are not needed."""
    from keylayers.cli.transfer import run_transfer

    run_transfer(scores, to, out, trust_remote_code)


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Hub id, folder, bundled:llama, or package.module:factory.")],
    weights: o.Weights = None,
    data: Annotated[str | None, typer.Option(help="Data for the inputs; without it they are random.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Score file, for the costs of what it would select.")] = None,
    select: Annotated[
        str | None, typer.Option(help="Policy whose costs are forecast; default: top:30% of the scores, or random.")
    ] = None,
    seq: Annotated[int, typer.Option(help="Tokens of a sequence, for the costs.")] = 128,
    batch: Annotated[int, typer.Option(help="Sequences per batch, for the costs.")] = 4,
    records: Annotated[int, typer.Option(help="Calibration records, for the costs of scoring.")] = 256,
    rank: o.Rank = 8,
    sample: Annotated[int, typer.Option(help="Most layers that a costly gate looks at.")] = 12,
    out: Annotated[Path | None, typer.Option(help="FILE.json for all that was found.")] = None,
    config: o.Config = None,
    dtype: o.Dtype = "auto",
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Examine a model before trusting it: correctness gates, what each command can do, time and memory.

    Exit status 1 if a gate fails.
    """
    from keylayers.cli.doctor import run_doctor

    raise typer.Exit(run_doctor(o.given(locals())))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder, or a folder of runs such as the demo's.")],
    out: Annotated[Path | None, typer.Option(help="Page to write; default: RUN/report.html.")] = None,
) -> None:
    """One HTML page of a run, to open from disk: the answer, heatmap, ranking, curves, costs, settings."""
    from keylayers.cli.report import run_report

    run_report(run, out)


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="ila, math-layers or data-oblivious.")],
    scale: Annotated[str, typer.Option(help="smoke (minutes), small (hours) or full.")] = "smoke",
    out: Annotated[Path | None, typer.Option(help="Run folder.")] = None,
    processes: Annotated[int, typer.Option(help="Computations side by side.")] = 2,
    fresh: o.Fresh = False,
    config: o.Config = None,
) -> None:
    """A paper's experiment with controls, beside its published figures."""
    from keylayers.cli.reproduce import run_reproduce

    run_reproduce(paper, scale, out, processes, fresh)


@app.command()
def league(
    model: o.Model = "bundled:llama",
    data: Annotated[
        list[str] | None, typer.Option(help="As for score; repeat for several. Default: bundled:pirate.")
    ] = None,
    budget: Annotated[str, typer.Option(help="Shares of what LoRA adds to all layers.")] = "10%,30%",
    criterion: Annotated[
        list[str] | None, typer.Option(help="Only entrants of this criterion; repeat for several.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Procedures per entrant, 2 or more.")] = 3,
    lr: Annotated[list[float] | None, typer.Option(help="Learning rates to choose from; default 1e-2, 3e-2.")] = None,
    steps: Annotated[int, typer.Option(help="Of every training.")] = 60,
    batch_size: o.BatchSize = 8,
    rank: o.Rank = 8,
    records: o.Records = 1024,
    held_out: Annotated[int, typer.Option(help="Most calibration and most test records.")] = 96,
    max_length: o.MaxLength = 192,
    control: Annotated[str | None, typer.Option(help="Data whose loss tells what is forgotten.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/league.")] = None,
    processes: Annotated[int, typer.Option(help="Computations side by side.")] = 2,
    fresh: o.Fresh = False,
    config: o.Config = None,
) -> None:
    """Every criterion, the same question, the same budget: which picks the best layers, and at what cost?"""
    from keylayers.cli.league import run_league

    run_league(o.given(locals()))


@app.command()
def harden(
    model: o.Network = o.DIGITS,
    weights: o.Weights = None,
    data: Annotated[
        str, typer.Option(help="Labelled images: .npz with x and y, or bundled:digits.")
    ] = "bundled:digits",
    select: Annotated[str, typer.Option(help="Policy over the layers, by fragility or --scores.")] = "top:5%",
    scores: Annotated[str | None, typer.Option(help="Score file; then layers are not chosen anew.")] = None,
    granularity: o.Granularity = "conv",
    loss: Annotated[str, typer.Option(help="pgd-at, trades or mart.")] = "pgd-at",
    feature_weight: Annotated[float, typer.Option(help="CLAT's lambda; 0: adversarial training alone.")] = 1.0,
    fast: Annotated[bool, typer.Option("--fast", help="One attack a step serves loss and features.")] = False,
    reselect: Annotated[int, typer.Option(help="Epochs after which layers are chosen anew; 0: never.")] = 10,
    eps: Annotated[str, typer.Option(help="Radius of attacks, linf, of pixels in [0, 1].")] = "8/255",
    steps: Annotated[int, typer.Option(help="Of the attacks of training.")] = 10,
    epochs: Annotated[int, typer.Option(help="Of training.")] = 20,
    batch_size: o.BatchSize = 100,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of parts, order and attacks.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/harden.")] = None,
    fresh: o.Fresh = False,
    config: o.Config = None,
) -> None:
    """Adversarial training of few layers of a network of images, the most fragile first (CLAT)."""
    from keylayers.cli.vision import run_harden

    run_harden(o.given(locals()))


@app.command()
def cleanse(
    model: o.Network = o.DIGITS,
    weights: o.Weights = None,
    clean: Annotated[str, typer.Option(help="Clean labelled images: .npz, or bundled:digits.")] = "bundled:digits",
    skip: Annotated[str, typer.Option(help="Skip connection to turn down, or auto.")] = "auto",
    calibration: Annotated[str, typer.Option(help="How auto chooses: clean-only or own-trigger.")] = "clean-only",
    target: Annotated[int, typer.Option(help="Class of the trigger of one's own.")] = 0,
    factor: Annotated[float, typer.Option(help="Of the skip: 0 removes it, 1 leaves it.")] = 0.0,
    tune: Annotated[str, typer.Option(help="What is fine-tuned: stage, block or all.")] = "stage",
    fold: Annotated[bool, typer.Option("--fold", help="Put the factor into a projection's weights.")] = False,
    epochs: Annotated[int, typer.Option(help="Of fine-tuning.")] = 40,
    batch_size: o.BatchSize = 50,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 0.05,
    attacked: Annotated[
        str | None, typer.Option(help="Images with a known trigger and true labels, to measure on alone.")
    ] = None,
    attack_target: Annotated[int | None, typer.Option(help="Class that this trigger should bring.")] = None,
    seed: Annotated[int, typer.Option(help="Of parts and order.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/cleanse.")] = None,
    fresh: o.Fresh = False,
    config: o.Config = None,
) -> None:
    """A skip connection turned down and the network tuned around it, to remove a backdoor."""
    from keylayers.cli.vision import run_cleanse

    run_cleanse(o.given(locals()))


@app.command()
def screen(
    data: Annotated[str, typer.Option(help="Images to judge: .npz with x.")],
    model: o.Network = o.DIGITS,
    weights: o.Weights = None,
    clean: Annotated[str, typer.Option(help="Clean labelled images: .npz, or bundled:digits.")] = "bundled:digits",
    layers: Annotated[str, typer.Option(help="auto, or a policy over blocks such as last:1.")] = "auto",
    alpha: Annotated[str, typer.Option(help="Most clean images that may be flagged.")] = "5%",
    per_class: Annotated[bool, typer.Option("--per-class", help="Hold that share in each class.")] = False,
    tau: Annotated[float | None, typer.Option(help="Instead: standard deviations, as published 2.5.")] = None,
    seed: Annotated[int, typer.Option(help="Of which clean images fit and which calibrate.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/screen.")] = None,
    fresh: o.Fresh = False,
    config: o.Config = None,
) -> None:
    """Flags images that are unlike the class they are predicted to be, where classes come together."""
    from keylayers.cli.vision import run_screen

    run_screen(o.given(locals()))


@app.command()
def criteria() -> None:
    """The criteria and what each computes."""
    from keylayers.cli.show import show_criteria

    show_criteria()


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> Any:
    if version:
        from keylayers import __version__

        typer.echo(f"keylayers {__version__}")
        raise typer.Exit
