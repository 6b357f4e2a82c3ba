"""Commands that act on the chosen layers: train, take back, hand to other tools, harden, cleanse, screen."""

from pathlib import Path
from typing import Annotated

import typer

from keylayers.cli import options as o
from keylayers.exports import TARGETS


def tune(
    model: o.Model,
    data: o.Data,
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
        list[float] | None,
        typer.Option(
            help="Learning rate; of several, each tried with every seed, an arm takes its best on calibration data."
        ),
    ] = None,
    batch_size: o.BatchSize = 16,
    rank: o.Rank = 8,
    seeds: Annotated[int, typer.Option(help="Training seeds; two or more give intervals.")] = 1,
    checkpointing: Annotated[bool, typer.Option(help="Recompute activations: less memory, more time.")] = False,
    fresh: o.Fresh = False,
    config: o.Config = None,
    template: o.Template = "auto",
    bad_share: o.BadShare = 0.01,
    dtype: o.Dtype = "auto",
    allow_pickle: o.AllowPickle = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Train only the selected layers; beside them, other choices at the same steps and seeds."""
    from keylayers.cli.runs import run_tune

    run_tune(o.given(locals()))


def export(
    scores: Annotated[str, typer.Argument(help="Score file, run with one criterion, score folder, or hub user/repo.")],
    to: Annotated[list[str], typer.Option(help=f"May be repeated: {', '.join(TARGETS)}.")],
    select: Annotated[str, typer.Option(help="Policy: top:30%, params:10%, last:4, blocks:3,4, ...")] = "top:30%",
    model: Annotated[
        str | None, typer.Option(help="Base model, its config.json suffices; default: the one the scores name.")
    ] = None,
    tuned: Annotated[str | None, typer.Option(help="Tuned model, for targets that take layers from one.")] = None,
    remainder: o.Remainder = "tuned",
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


def revert(
    model: Annotated[str, typer.Option(help="Base checkpoint folder, or bundled:llama.")],
    tuned: Annotated[str, typer.Option(help="Tuned checkpoint folder or LoRA adapter.")],
    scores: Annotated[Path, typer.Option(help="Score file, folder or hub user/repo.")],
    out: Annotated[Path, typer.Option(help="Folder for the new checkpoint.")],
    select: Annotated[str, typer.Option(help="Layers whose change stays.")] = "top:75%",
    remainder: o.Remainder = "tuned",
    config: o.Config = None,
) -> None:
    """Take back the changes of the layers outside a selection; no training, streamed from disk."""
    from keylayers.cli.runs import run_revert

    run_revert(model, tuned, scores, out, select, remainder)


def harden(
    model: o.Network = None,
    weights: o.NetworkWeights = None,
    data: Annotated[str | None, typer.Option(help="Labelled images: .npz with x and y, or bundled:digits.")] = None,
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


def cleanse(
    model: o.Network = None,
    weights: o.NetworkWeights = None,
    clean: o.Clean = None,
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


def screen(
    data: Annotated[str, typer.Option(help="Images to judge: .npz with x.")],
    model: o.Network = None,
    weights: o.NetworkWeights = None,
    clean: o.Clean = None,
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
