"""A paper's experiment with controls, beside its published figures."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keylayers.cli.terminal import UNFINISHED, placeless, quiet_libraries, say
from keylayers.errors import BadInput, UnknownName

SCALES = ("smoke", "small", "full")
MASKS = "masks"
"""A scale that only ILA has: the trial of its mask's settings."""


@dataclass(frozen=True)
class Paper:
    """A paper's experiment: how much of it there is, doing it, and the page it ends in."""

    scale_of: Callable[[str], Any]
    """Name of a scale -> what is asked at it."""
    reproduce: Callable[..., Any]
    """(what is asked, run folder, processes) -> all that was measured so far, after every part."""
    page: Callable[[Any, str], str]
    """(what was measured, name of the scale) -> Markdown."""
    plain: Callable[[Any], Mapping[str, Any]]
    """What was measured, as JSON."""
    lacks: Callable[[Any], str | None] = lambda asked: None
    """What is asked -> what the machine lacks for the whole of it."""


def _ila() -> Paper:
    from keylayers.recipes import ila, ila_plan, ila_tables
    from keylayers.studies.pages import page

    def told(study: ila.Study, scale: str) -> str:
        text = ila_tables.introduction(study.tasks, scale)
        return page("ILA and its rivals, measured", text, ila_tables.tables(study))

    def lacks(asked: ila_plan.Scale) -> str | None:
        if len(asked.tasks) < 2 or any(task.name.startswith("stories260K") for task in asked.tasks):
            return None
        return NO_REAL

    return Paper(ila_plan.scale_of, ila.reproduce, told, ila_tables.plain, lacks)


def _ila_masks() -> Paper:
    from keylayers.recipes import ila_masks, ila_masks_tables
    from keylayers.studies.pages import page

    def told(found: tuple[ila_masks.Tried, ...], scale: str) -> str:
        text = ila_masks_tables.introduction(found, scale)
        return page("ILA's mask on trial", text, ila_masks_tables.tables(found))

    def lacks(trial: ila_masks.Trial) -> str | None:
        return None if len(trial.tasks) > 2 else NO_REAL

    return Paper(ila_masks.trial_of, ila_masks.reproduce, told, ila_masks_tables.plain, lacks)


def _math_layers() -> Paper:
    from keylayers.recipes import math_layers, math_layers_plan, math_layers_tables
    from keylayers.studies.pages import page

    def told(study: math_layers.Study, scale: str) -> str:
        text = math_layers_tables.introduction(study, scale)
        return page("Layers for mathematics, measured", text, math_layers_tables.tables(study))

    return Paper(math_layers_plan.scale_of, math_layers.reproduce, told, math_layers_tables.plain)


def _data_oblivious() -> Paper:
    from keylayers.recipes import oblivious, oblivious_plain, oblivious_plan, oblivious_tables
    from keylayers.studies.pages import page

    def told(study: oblivious.Study, scale: str) -> str:
        text = oblivious_tables.introduction(study, scale)
        return page("Data-oblivious critical layers, measured", text, oblivious_tables.tables(study))

    def lacks(asked: oblivious_plan.Scale) -> str | None:
        if len(asked.bases) < 2 or any(base.name == "stories260K" for base in asked.bases):
            return None
        return NO_REAL

    return Paper(oblivious_plan.scale_of, oblivious.reproduce, told, oblivious_plain.plain, lacks)


def _lfa() -> Paper:
    from keylayers.recipes import lfa, lfa_tables
    from keylayers.studies.pages import page

    def told(found: tuple[lfa.Results, ...], scale: str) -> str:
        return page(
            "Layer-wise feature analysis, measured", lfa_tables.introduction(found, scale), lfa_tables.tables(found)
        )

    def lacks(asked: lfa.Scale) -> str | None:
        return None if len(asked.watched) > 1 or asked == lfa.scale_of("smoke") else NO_IMAGES

    return Paper(lfa.scale_of, lfa.reproduce, told, lfa_tables.plain, lacks)


def _ssft() -> Paper:
    from keylayers.recipes import ssft, ssft_tables
    from keylayers.studies.pages import page

    def told(found: tuple[ssft.Results, ...], scale: str) -> str:
        return page(
            "Suppressing shortcuts, measured", ssft_tables.introduction(found, scale), ssft_tables.tables(found)
        )

    def lacks(asked: ssft.Scale) -> str | None:
        return None if len(asked.cleansings) > 1 or asked == ssft.scale_of("smoke") else NO_IMAGES

    return Paper(ssft.scale_of, ssft.reproduce, told, ssft_tables.plain, lacks)


def _clat() -> Paper:
    from keylayers.recipes import clat, clat_tables
    from keylayers.studies.pages import page

    def told(found: tuple[clat.Results, ...], scale: str) -> str:
        return page(
            "CLAT and its controls, measured", clat_tables.introduction(found, scale), clat_tables.tables(found)
        )

    def lacks(asked: clat.Scale) -> str | None:
        return None if len(asked.hardenings) > 1 or asked == clat.scale_of("smoke") else NO_IMAGES

    return Paper(clat.scale_of, clat.reproduce, told, clat_tables.plain, lacks)


NO_REAL = "without the real model and data: set KEYLAYERS_MODELS and KEYLAYERS_DATA (docs/stories260K.md)"
NO_IMAGES = "on the bundled digits alone: for MNIST and CIFAR-10 set KEYLAYERS_MODELS and KEYLAYERS_DATA"

PAPERS: dict[str, tuple[str, Callable[[], Paper]]] = {
    "ila": (
        "learned masks over deltas: are the rankings stable, are the layers worth training? (Shi et al. 2025)",
        _ila,
    ),
    "math-layers": (
        "are the blocks for mathematics made in pre-training, and kept by post-training? (Nepal et al. 2025)",
        _math_layers,
    ),
    "data-oblivious": (
        "does the representation of untuned models show which blocks tuning and backdoors need? (Liu et al. 2025)",
        _data_oblivious,
    ),
    "clat": (
        "does adversarial training of the few most fragile layers add robustness? (Gopal et al. 2025)",
        _clat,
    ),
    "ssft": (
        "does silencing one skip connection make fine-tuning remove a backdoor? (Yang et al. 2023)",
        _ssft,
    ),
    "lfa": (
        "do poisoned images stand out at the layers where classes come together? (Jebreel et al. 2023)",
        _lfa,
    ),
}
"""Name -> what the paper asks, and its experiment, which is imported only to be done."""


def run_reproduce(paper: str, scale: str, out: Path | None, processes: int, fresh: bool) -> None:
    """`keylayers reproduce`."""
    if paper not in PAPERS:
        raise UnknownName("paper", paper, PAPERS)
    scales = (*SCALES, MASKS) if paper == "ila" else SCALES
    if scale not in scales:
        raise UnknownName("scale", scale, scales)
    if processes < 1:
        raise BadInput(f"--processes {processes}: expected at least 1.")
    folder = out or Path("runs") / f"{paper}-{scale}"
    asks, parts = PAPERS[paper] if scale != MASKS else (f"{PAPERS[paper][0]} The mask's settings", _ila_masks)
    say(f"{paper}, {scale}: {asks}; results in {folder}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    quiet_libraries()
    from keylayers.recipes.places import given_of
    from keylayers.runs import open_run, write_json, write_text

    experiment = parts()
    asked = experiment.scale_of(scale)
    if lacking := experiment.lacks(asked):
        say(lacking)
    given = given_of(asked)
    with open_run(folder, f"reproduce {paper}", {"scale": scale}, given=given, fresh=fresh) as run:
        for study in experiment.reproduce(asked, run, processes):
            write_json(folder / "results.json", json.loads(placeless(json.dumps(experiment.plain(study)))))
            write_text(folder / "results.md", UNFINISHED + (text := placeless(experiment.page(study, scale))))
            say(f"so far in {folder / 'results.md'}")
        write_text(folder / "results.md", text)
    say(text)
    say(f"stored in {folder / 'results.md'}; every figure behind it in {folder / 'results.json'}")
