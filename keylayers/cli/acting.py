"""Commands that act on the chosen layers: train, take back, hand to other tools, harden, cleanse, screen."""

from pathlib import Path
from typing import Annotated

import typer

from keylayers.cli import options as o
from keylayers.exports import TARGETS


def tune(
    model: o.Model,
    data: o.Data,
    scores: Annotated[
        Path | None, typer.Option(help="Score file or hub user/repo; policies such as random and last need none.")
    ] = None,
    select: Annotated[str, typer.Option(help="Which layers: top:30%, params:10%, last:4, blocks:3,4, ...")] = "top:30%",
    against: Annotated[
        list[str] | None, typer.Option(help="Another policy to train beside it, for comparison; may be repeated.")
    ] = None,
    method: Annotated[str, typer.Option(help="How to train the selected layers: lora, qlora or full.")] = "lora",
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/tune-MODEL-DATA.")] = None,
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
    seeds: Annotated[int, typer.Option(help="Number of training seeds; two or more give intervals.")] = 1,
    checkpointing: Annotated[
        bool, typer.Option(help="Recompute activations in the backward pass: less memory, more time.")
    ] = False,
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
    to: Annotated[list[str], typer.Option(help=f"The other tool; may be repeated: {', '.join(TARGETS)}.")],
    select: Annotated[str, typer.Option(help="Which layers: top:30%, params:10%, last:4, blocks:3,4, ...")] = "top:30%",
    model: Annotated[
        str | None,
        typer.Option(help="The base model, of which config.json suffices; default: the one that the scores name."),
    ] = None,
    tuned: Annotated[str | None, typer.Option(help="Tuned model, for targets that take layers from one.")] = None,
    remainder: o.Remainder = "tuned",
    rank: Annotated[int, typer.Option(help="Rank of LoRA adapters, for targets that have them.")] = 16,
    alpha: Annotated[
        float | None, typer.Option(help="LoRA's alpha: the update is scaled by alpha / rank. Default: twice the rank.")
    ] = None,
    ranks: Annotated[
        str,
        typer.Option(
            help="Ranks of the layers: equal, or by-score (in proportion to their scores, with --rank as the mean)."
        ),
    ] = "equal",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; default: print them on standard output.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files that differ.")] = False,
    nearest: Annotated[
        bool,
        typer.Option(
            "--nearest", help="Where a target cannot express the selection, export the nearest one that it can."
        ),
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
    select: Annotated[str, typer.Option(help="Which layers keep their change.")] = "top:75%",
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
    select: Annotated[str, typer.Option(help="Which layers to train, ranked by fragility or by --scores.")] = "top:5%",
    scores: Annotated[
        str | None, typer.Option(help="Score file to rank the layers by; they are then chosen once.")
    ] = None,
    granularity: o.Granularity = "conv",
    loss: Annotated[str, typer.Option(help="Loss of adversarial training: pgd-at, trades or mart.")] = "pgd-at",
    feature_weight: Annotated[
        float, typer.Option(help="Weight of CLAT's term for features; 0: adversarial training alone.")
    ] = 1.0,
    fast: Annotated[
        bool, typer.Option("--fast", help="Use one attack per step for both the loss and the features.")
    ] = False,
    reselect: Annotated[int, typer.Option(help="Choose the layers anew after so many epochs; 0: never.")] = 10,
    eps: Annotated[str, typer.Option(help="Radius of the attacks in the linf norm, for pixels in [0, 1].")] = "8/255",
    steps: Annotated[int, typer.Option(help="Steps of each attack in training.")] = 10,
    epochs: Annotated[int, typer.Option(help="Training epochs.")] = 20,
    batch_size: o.BatchSize = 100,
    lr: Annotated[float, typer.Option(help="Highest learning rate of the schedule.")] = 0.01,
    seed: Annotated[
        int, typer.Option(help="Seed of the split into parts, of the order of images, and of the attacks.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/harden.")] = None,
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
    skip: Annotated[
        str, typer.Option(help="The skip connection to turn down, or auto: the one that the calibration blames.")
    ] = "auto",
    calibration: Annotated[
        str, typer.Option(help="How auto chooses the skip: clean-only or own-trigger.")
    ] = "clean-only",
    target: Annotated[int, typer.Option(help="With own-trigger: the class that the planted trigger brings.")] = 0,
    factor: Annotated[
        float, typer.Option(help="What the skip is multiplied by: 0 removes it, 1 leaves it as it is.")
    ] = 0.0,
    tune: Annotated[
        str, typer.Option(help="What is fine-tuned around the skip: its stage, its block, or all.")
    ] = "stage",
    fold: Annotated[
        bool,
        typer.Option("--fold", help="Put the factor into the weights of a projection, so that no wrapper is needed."),
    ] = False,
    epochs: Annotated[int, typer.Option(help="Epochs of fine-tuning.")] = 40,
    batch_size: o.BatchSize = 50,
    lr: Annotated[float, typer.Option(help="Highest learning rate of the schedule.")] = 0.05,
    attacked: Annotated[
        str | None, typer.Option(help="Images with a known trigger and their true labels; only measured on.")
    ] = None,
    attack_target: Annotated[int | None, typer.Option(help="The class that this trigger should bring.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split into parts and of the order of images.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/cleanse.")] = None,
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
    layers: Annotated[str, typer.Option(help="Which blocks to watch: auto, or a policy such as last:1.")] = "auto",
    alpha: Annotated[str, typer.Option(help="Largest share of clean images that may be flagged.")] = "5%",
    per_class: Annotated[bool, typer.Option("--per-class", help="Hold that share within each class.")] = False,
    tau: Annotated[
        float | None, typer.Option(help="Threshold in standard deviations instead of --alpha; published: 2.5.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the split of the clean images into those that fit and those that calibrate.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/screen.")] = None,
    fresh: o.Fresh = False,
    config: o.Config = None,
) -> None:
    """Flags images that are unlike the class they are predicted to be, where classes come together."""
    from keylayers.cli.vision import run_screen

    run_screen(o.given(locals()))
