"""What a run on a network of images found (harden, cleanse, screen), in sentences."""

from collections.abc import Callable, Mapping
from typing import Any

from keylayers.errors import BadInput
from keylayers.report.collect import Run
from keylayers.report.heads import Answer, Tile
from keylayers.report.vision_bars import blame, by_class, by_suspicion, epochs
from keylayers.report.words import NO_BREAK, and_list, plural, share, whole
from keylayers.runs import read_json

FEW = 6
"""Names of layers in a sentence."""


def answer_of(run: Run) -> Answer | None:
    """The head of its report; None for another command, or where its figures are not there yet."""
    if run.command not in _READ:
        return None
    file, read = _READ[run.command]
    try:
        return read(read_json(run.path / file))
    except (BadInput, KeyError, TypeError, ValueError, IndexError):
        return None


def _of_hardening(found: Mapping[str, Any]) -> Answer:
    before, last, best = found["before"], found["last"], found["best"]
    worst = list(before)[-1]
    (_, first), *later = found["selections"]
    sentence = (
        f"Adversarial training of {plural(len(first), 'layer')} brings accuracy under attack from "
        f"{share(before[worst])} to {share(last[worst])} of {whole(found['images'])} held-out images."
    )
    tiles = tuple(
        Tile(
            name[0].upper() + name[1:],
            share(last[name]),
            f"before {share(before[name])}, best epoch {share(best[name])}",
        )
        for name in before
    )
    points = [f"Trained first: {_names(first)} ({whole(found['trained'])} parameters)."]
    points += [f"From epoch {epoch + 1}: {_names(names)}." for epoch, names in later]
    limits = (
        _known_to(found["images"]),
        "One training of one selection does not show that these layers are the ones: harden others "
        "beside it, such as random:30%:match=params, and with other seeds.",
        "Attacks of other kinds may succeed where these fail (docs/cards/harden.md).",
    )
    bars = (epochs(found["losses"], found["watched"], found["best_epoch"]),)
    return Answer(sentence, (*points, *found["warnings"]), tiles, bars, limits)


def _of_cleansing(found: Mapping[str, Any]) -> Answer:
    before, after = found["figures"]["clean accuracy"]
    sentence = (
        f"With {_names(found['skips'])} turned down and {whole(found['trained'])} parameters tuned around it, clean "
        f"accuracy goes from {share(before)} to {share(after)} of {whole(found['images'])} held-out images."
    )
    tiles = tuple(
        Tile(name[0].upper() + name[1:], share(values[1]), f"before {share(values[0])}")
        for name, values in found["figures"].items()
    )
    points = list(found["warnings"])
    if "attack success" not in found["figures"]:
        points.append(
            "Whether a backdoor was there, or is gone, cannot be told without its trigger (keylayers cleanse "
            "--attacked)."
        )
    limits = (
        _known_to(found["images"]),
        "A backdoor may come back when the network is trained further, or answer to another trigger.",
    )
    bars = (blame(found["scores"], found["skips"]),) if found["scores"] else ()
    return Answer(sentence, tuple(points), tiles, bars, limits)


def _of_screening(found: Mapping[str, Any]) -> Answer:
    flagged, images = sum(found["flagged"]), found["images"]
    sentence = f"{whole(flagged)} of {whole(images)} images are flagged as unlike the class they are taken for."
    tiles = (Tile("Flagged", share(flagged / images) if images else "0 %", f"{whole(flagged)} of {whole(images)}"),)
    points = (f"Watched at {and_list(found['layers'])}.", f"{found['promise'][0].upper()}{found['promise'][1:]}.")
    bars = (by_suspicion(found["suspicion"], found["flagged"]), by_class(found["class"], found["flagged"]))
    limits = (
        "A flagged image is unlike its class; that it carries a trigger, or that the others do not, is not shown.",
    )
    return Answer(sentence, points, tiles, bars if images else (), limits)


def _known_to(images: int) -> str:
    half = f"{98 / images**0.5:.1f}"
    return f"A share of {whole(images)} images is known to ±{NO_BREAK}{half} points at worst (95{NO_BREAK}%)."


def _names(names: list[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


_READ: dict[str, tuple[str, Callable[[Mapping[str, Any]], Answer]]] = {
    "harden": ("results.json", _of_hardening),
    "cleanse": ("results.json", _of_cleansing),
    "screen": ("flags.json", _of_screening),
}
"""Command -> the file of its figures and how they are told."""
