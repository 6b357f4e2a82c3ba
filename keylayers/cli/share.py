"""`keylayers share`: how many layers are enough, from a gain curve on held-out records."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keylayers.cli.options import pairs
from keylayers.cli.options import share as share_of
from keylayers.cli.terminal import quiet_libraries, say, table
from keylayers.errors import BadScores, UnknownName

COUNTED = {"lora": "of what LoRA adds", "weights": "of the layers' parameters", "layers": "of the layers"}
"""What a share of the layers is counted in."""


def run_share(options: dict[str, Any]) -> None:
    """`keylayers share`."""
    from keylayers.runs import note
    from keylayers.scores import load_scores

    if options["of"] not in COUNTED:
        raise UnknownName("unit of --of", options["of"], COUNTED)
    within, scores = (
        share_of(options["within"], "--within", "the part of the gain that may be lost, such as 5%"),
        load_scores(options["scores"]),
    )
    parts = _parts(scores, options["of"])
    note(f"gain curve of {options['tuned']} over {options['model']} on {options['data']}, by {scores.criterion}")
    quiet_libraries()
    from keylayers.cli.runs import LOADING
    from keylayers.data.sources import source_files
    from keylayers.inputs.text import Inputs, tuned_place
    from keylayers.recipes.share import ShareRequest, choose_share, settings_of
    from keylayers.report.gain import draw_gain
    from keylayers.runs import Given, open_run, write_json

    names = ("model", "data", "weights", "max_length", "held_out", "template", "bad_share", *LOADING)
    inputs = Inputs(**{name: options[name] for name in names}, columns=pairs(options["columns"], "--column"))
    request = ShareRequest(
        tuned=options["tuned"],
        inputs=inputs,
        within=within,
        points=options["points"],
        draws=options["draws"],
        seed=options["seed"],
        batch_size=options["batch_size"],
    )
    settings = settings_of(request, scores)
    folder = options["out"] or Path("runs") / f"share-{Path(options['scores']).stem}-{_digest(settings)}"
    models = (options["model"], options["weights"], tuned_place(options["tuned"]))
    given = Given(models, source_files(options["data"]))
    with open_run(folder, "share", settings, given=given, fresh=options["fresh"]) as run:
        result = choose_share(request, run, scores)
        write_json(folder / "share.json", {"format": "keylayers/share/1", "policy": result.policy, **asdict(result)})
        draw_gain(result.calibration, result.k, within, folder)
    _show_curve(result, parts, COUNTED[options["of"]])
    say("\n" + answer(result, within, parts, COUNTED[options["of"]]))
    if result.k is not None and result.k < len(scores.layers):
        say("\n" + _next(options, result))
    say(f"stored in {folder / 'share.json'}; the curve in {folder / 'gain.svg'}")


def answer(result: Any, within: float, parts: list[float], counted: str) -> str:
    """What the curve says, in words. `parts`: the share of the budget that the 1, 2, ... most critical layers take."""
    total, asked, curve = len(parts), f"{100 * (1 - within):g}%", result.calibration
    if result.k is None:
        last = curve.points[-1]
        why = (
            f" Tuning also changed {result.elsewhere} tensors outside these layers, which no set keeps."
            if result.elsewhere
            else " More records (--held-out) would narrow the bound."
        )
        return (
            f"No set of layers surely keeps {asked} of the gain: all {total} keep {last.share:.1%}, at least "
            f"{last.low:.1%}.{why}"
        )
    point, judged = curve.at(result.k), result.test.at(result.k)
    chosen = f"the {result.k} most critical of {total} layers ({parts[result.k - 1]:.0%} {counted})"
    lines = [
        f"{chosen[0].upper()}{chosen[1:]} keep {asked} of the gain: {point.share:.1%} on the {curve.examples} "
        f"calibration records that chose them, lower bound {point.low:.3f}."
    ]
    verdict = "which holds there too" if judged.low >= 1 - within else "which does not confirm it"
    lines.append(
        f"On {result.test.examples} test records, which chose nothing, they keep {judged.share:.1%}, lower bound "
        f"{judged.low:.3f}: {verdict}."
    )
    if result.k == total:
        lines.append("That is every layer: nothing smaller is sure enough, so this ranking saves nothing here.")
    else:
        lines.append(_beside_random(judged))
        enough = curve.random_enough(within)
        lines.append(
            f"Of the sizes tried, {enough} random layers of the same kinds ({parts[enough - 1]:.0%} {counted}) are the "
            f"fewest that keep {asked} on average, on the calibration records."
        )
    lines.append(
        "This keeps changes that were trained together with all others; it is not retraining. Whether training these "
        "layers alone from the start does as well, only training tells."
    )
    return "\n".join(lines)


def _beside_random(judged: Any) -> str:
    mean, lead = sum(judged.random) / len(judged.random), judged.lead
    spread = f"{len(judged.random)} draws, {min(judged.random):.1%} to {max(judged.random):.1%}"
    beside = f"Random layers of the same kinds keep {mean:.1%} there ({spread}): "
    bounds = f"{lead.estimate:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}] over draws"
    if lead.low > 0:
        return f"{beside}the ranking adds {bounds}."
    return f"{beside}the ranking adds nothing that these draws show ({bounds}); its size would serve random layers too."


def _show_curve(result: Any, parts: list[float], counted: str) -> None:
    curve = result.calibration
    say(
        f"before tuning {curve.base_loss:.4f}, after {curve.tuned_loss:.4f} nats per token on {curve.examples} "
        f"calibration records: gain {curve.gain}"
    )
    if result.unchanged:
        say(f"tuning left {result.unchanged} of the {len(parts)} scored layers alone")
    rows = []
    for point in curve.points:
        draws = ("", "", "")
        if point.random:
            draws = tuple(f"{f(point.random):.3f}" for f in (lambda v: sum(v) / len(v), min, max))  # type: ignore[assignment]
        mark = "<- chosen" if point.k == result.k else ""
        rows.append((str(point.k), f"{parts[point.k - 1]:.1%}", f"{point.share:.3f}", f"{point.low:.3f}", *draws, mark))
    columns = ("layers", counted, "gain kept", "at least", "random, mean", "lowest", "highest", "")
    shown = len(columns) - (result.k is None)
    say(table(columns[:shown], [row[:shown] for row in rows]))
    say("at least: one-sided 95 % bound over records; random: layers of the same kinds, as many of each")


def _next(options: dict[str, Any], result: Any) -> str:
    """The command that finds out whether retraining does as well."""
    words = ["keylayers", "tune", "--model", options["model"], "--data", options["data"], "--scores"]
    words += [str(options["scores"]), "--select", result.policy, "--against", "all"]
    words += ["--against", f"random:{result.k}:match=kind", "--seeds", "5"]
    for name in ("weights", "max_length", "dtype"):
        if options[name] not in (None, "auto"):
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    for one in options["columns"] or ():
        words += ["--column", one]
    return f"policy: {result.policy}\ntry it: {shlex.join(words)}"


def _parts(scores: Any, of: str) -> list[float]:
    """The share of the budget that the 1, 2, ... most critical layers take."""
    order = [scores.layers[place] for place in scores.order()]
    sizes = [1 if of == "layers" else layer.lora_size if of == "lora" else layer.size for layer in order]
    total, so_far, found = sum(sizes), 0, []
    if not total:
        raise BadScores(f"these scores do not say what {of} counts of each layer; score again, or use --of layers.")
    for size in sizes:
        so_far += size
        found.append(so_far / total)
    return found


def _digest(settings: dict[str, Any]) -> str:
    from keylayers.runs import digest

    return digest(settings)[:10]
