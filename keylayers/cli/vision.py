"""Commands on networks of images: harden, cleanse, screen."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keylayers.cli.options import DIGITS, share
from keylayers.cli.report import end_with_report
from keylayers.cli.terminal import quiet_libraries, say, table
from keylayers.errors import BadInput

EXAMPLES = {"model": DIGITS, "data": "IMAGES.npz", "clean": "IMAGES.npz"}
"""What an option that is missing may hold."""


def run_screen(options: dict[str, Any]) -> None:
    """`keylayers screen`."""
    from keylayers.scores import parse

    options = _named(options, "clean")
    if options["layers"] != "auto":
        parse(options["layers"])
    alpha = share(options["alpha"], "--alpha", "the share of clean images that may be flagged, such as 5%")
    quiet_libraries()
    from keylayers.actions.screening import ScreenSettings
    from keylayers.recipes.screen import ScreenRequest, screen_stream
    from keylayers.runs import Given, open_run, write_json

    threshold: Any = "conformal" if options["tau"] is None else "tau"
    tau = 2.5 if options["tau"] is None else options["tau"]
    settings = ScreenSettings(threshold, alpha, options["per_class"], tau)
    request = ScreenRequest(_inputs(options, "clean"), options["data"], options["layers"], settings)
    folder = options["out"] or Path("runs") / "screen"
    given = Given(_network(options), (options["clean"], options["data"]))
    with open_run(folder, "screen", request, given=given, fresh=options["fresh"]) as run:
        found = screen_stream(request, run)
        stated = {
            "images": found.images,
            "promise": found.promise,
            "layers": found.layers,
            "settings": asdict(settings),
        }
        write_json(folder / "flags.json", {"format": "keylayers/flags/1", **stated, **found.figures})
    shown = ", ".join(map(str, found.flags[:10])) + (", ..." if len(found.flags) > 10 else "")
    say(f"watched at {', '.join(found.layers)}; {found.promise}")
    say(f"{len(found.flags)} of {found.images} images are flagged ({len(found.flags) / found.images:.1%})")
    if found.flags:
        say(f"places: {shown}")
    say(f"every image's suspicion in {folder / 'flags.json'}; the screen in {folder / 'screen.safetensors'}")
    end_with_report(folder)


def run_cleanse(options: dict[str, Any]) -> None:
    """`keylayers cleanse`."""
    options = _named(options, "clean")
    if (options["attacked"] is None) != (options["attack_target"] is None):
        raise BadInput("--attacked and --attack-target go together: images with a trigger, and what it should bring.")
    quiet_libraries()
    from keylayers.actions.cleansing import Cleanse
    from keylayers.recipes.cleanse import CleanseRequest, cleanse_network
    from keylayers.runs import Given, open_run, write_json
    from keylayers.training.images import ImageTraining

    training = ImageTraining(options["epochs"], options["batch_size"], options["lr"], seed=options["seed"])
    request = CleanseRequest(
        _inputs(options, "clean"),
        options["skip"],
        options["calibration"],
        options["target"],
        Cleanse(options["factor"], options["tune"], options["fold"], training),
        options["attacked"],
        options["attack_target"],
    )
    folder = options["out"] or Path("runs") / "cleanse"
    given = Given(_network(options), (options["clean"], options["attacked"]))
    with open_run(folder, "cleanse", request, given=given, fresh=options["fresh"]) as run:
        found = cleanse_network(request, run)
        write_json(folder / "results.json", asdict(found))
    if found.scores is not None:
        order = sorted(found.scores, key=lambda name: -found.scores[name])  # type: ignore[index]
        say(table(("skip", f"blamed ({options['calibration']})"), [(n, f"{found.scores[n]:.4f}") for n in order]))
        say("blamed: how sharply answers fall as the skip is turned down (docs/cards/skip_suppression.md)\n")
    how = "left as they are" if options["factor"] == 1 else f"turned down to {options['factor']:g}"
    say(f"{how}: {', '.join(found.skips)}; {found.trained:,} parameters were tuned")
    rows = [(name, f"{before:.3f}", f"{after:.3f}") for name, (before, after) in found.figures.items()]
    say(table((f"share of {found.images} held-out images", "before", "after"), rows))
    for warning in found.warnings:
        say(f"warning: {warning}")
    if options["attacked"] is None:
        say("Whether a backdoor was there, or is gone, cannot be told without its trigger (--attacked).")
    say(f"weights in {folder / 'cleansed.safetensors'}")
    if not options["fold"]:
        say(
            f"{folder / 'cleansed.json'} turns the skip down where keylayers loads them; elsewhere, write:"
            f"\n  from keylayers.layers.suppressed import Suppressed\n  network = Suppressed(network, "
            f"{list(found.skips)}, {options['factor']:g})"
        )
    end_with_report(folder)


def run_harden(options: dict[str, Any]) -> None:
    """`keylayers harden`."""
    from keylayers.scores import load_scores, parse

    options = _named(options, "data")
    eps = fraction(options["eps"], "--eps")
    parse(options["select"])
    if options["reselect"] < 0:
        raise BadInput(f"--reselect {options['reselect']}: expected epochs, or 0 for never.")
    quiet_libraries()
    from keylayers.actions.hardening import HardenSettings
    from keylayers.maths.attacks import Ball
    from keylayers.measures.attacks import Pgd
    from keylayers.recipes.harden import HardenRequest, harden_network
    from keylayers.runs import Given, open_run, write_json
    from keylayers.training.images import ImageTraining

    scores = None if options["scores"] is None else load_scores(options["scores"])
    training = ImageTraining(options["epochs"], options["batch_size"], options["lr"], seed=options["seed"])
    settings = HardenSettings(
        options["loss"],
        attack=Pgd(Ball(eps), options["steps"], seed=options["seed"]),
        feature_weight=options["feature_weight"],
        fast=options["fast"],
        every=max(1, options["reselect"]),
        training=training,
    )
    request = HardenRequest(
        _inputs(options, "data"), options["select"], options["granularity"], options["reselect"] > 0, settings
    )
    folder = options["out"] or Path("runs") / "harden"
    asked = {**asdict(request), "scores": None if scores is None else scores.sha256}
    given = Given(_network(options), (options["data"],))
    with open_run(folder, "harden", asked, given=given, fresh=options["fresh"]) as run:
        found = harden_network(request, run, scores)
        write_json(folder / "results.json", asdict(found))
    say("\n".join(f"from epoch {epoch + 1}: {_some(names)}" for epoch, names in found.selections))
    rows = [(name, *(f"{one[name]:.3f}" for one in (found.before, found.last, found.best))) for name in found.before]
    best = f"best epoch ({found.best_epoch + 1})"
    say("\n" + table((f"accuracy on {found.images} held-out images", "before", "last epoch", best), rows))
    say("pgd-STEPSxRESTARTS attacks the loss, features those of all blocks; worst case: right under both")
    error = 0.98 / found.images**0.5
    say(f"best: under attack, on calibration images; a share is known to ± {error:.3f} at worst (95 %)")
    say(f"eps {eps:.4g}; {found.trained:,} parameters train; {found.untouched} tensors proved unchanged")
    for warning in found.warnings:
        say(f"warning: {warning}")
    say(f"weights in {folder / 'last.safetensors'} and {folder / 'best.safetensors'}")
    end_with_report(folder)


def fraction(text: str, flag: str) -> float:
    """A number above 0 from `8/255` or `0.03`. Raises BadInput for anything else."""
    above, _, below = text.partition("/")
    try:
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError) as error:
        raise BadInput(f"{flag} {text}: expected a radius such as 8/255 or 0.03.") from error
    if not 0 < value <= 1:
        raise BadInput(f"{flag} {text}: expected a radius above 0 and at most 1; pixels lie in [0, 1].")
    return value


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _named(options: dict[str, Any], key: str) -> dict[str, Any]:
    """The options with a network and images: those that are named, or both bundled ones, which is said.

    Raises:
        BadInput: if one of the two is named and the other is not.
    """
    from keylayers.runs import note

    if options["model"] is None and options["weights"] is None and options[key] is None:
        note(f"no --model and no --{key}: taking the bundled digits and an untrained network for them, as an example")
        return {**options, "model": DIGITS, key: "bundled:digits"}
    for name in ("model", key):
        if options[name] is None:
            what = "the network" if name == "model" else "labelled images"
            raise BadInput(f"Missing option '--{name}': name {what} (--{name} {EXAMPLES[name]}).")
    return options


def _network(options: dict[str, Any]) -> tuple[str | Path | None, ...]:
    """The model, its weights, and the file beside them that says what is suppressed."""
    weights = options["weights"]
    return (options["model"], weights, None if weights is None else f"{os.path.splitext(weights)[0]}.json")


def _inputs(options: dict[str, Any], key: str) -> Any:
    from keylayers.inputs.images import ImageInputs

    return ImageInputs(options["model"], options[key], options["weights"], options["seed"])
