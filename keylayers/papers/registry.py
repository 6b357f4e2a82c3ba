"""The papers that are reproduced: what each asks, and its experiment, which is imported only to be run."""

from collections.abc import Callable
from typing import Any

from keylayers.studies.study import Paper

NO_REAL = "without the real model and data: set KEYLAYERS_MODELS and KEYLAYERS_DATA (docs/stories260K.md)"
NO_IMAGES = "on the bundled digits alone: for MNIST and CIFAR-10 set KEYLAYERS_MODELS and KEYLAYERS_DATA"
STORIES = "stories260K"


def _ila() -> Paper:
    from keylayers.papers.ila import plan, study, tables

    def missing(scale: plan.Scale) -> str | None:
        return None if len(scale.tasks) < 2 or _any_real(scale.tasks) else NO_REAL

    return Paper(
        "ILA and its rivals, measured",
        plan.scale_of,
        study.reproduce,
        lambda results, scale: (tables.introduction(results.tasks, scale), tables.make_tables(results)),
        tables.to_json,
        missing,
    )


def _ila_masks() -> Paper:
    from keylayers.papers.ila import mask_settings, mask_settings_tables

    return Paper(
        "ILA's mask on trial",
        mask_settings.trial_of,
        mask_settings.reproduce,
        lambda results, scale: (
            mask_settings_tables.introduction(results, scale),
            mask_settings_tables.tables(results),
        ),
        mask_settings_tables.to_json,
        lambda trial: None if len(trial.tasks) > 2 else NO_REAL,
    )


def _math_layers() -> Paper:
    from keylayers.papers.math_layers import plan, study, tables

    return Paper(
        "Layers for mathematics, measured",
        plan.scale_of,
        study.reproduce,
        lambda results, scale: (tables.introduction(results, scale), tables.make_tables(results)),
        tables.to_json,
    )


def _data_oblivious() -> Paper:
    from keylayers.papers.data_oblivious import plan, results_json, study, tables

    def missing(scale: plan.Scale) -> str | None:
        return None if len(scale.bases) < 2 or _any_real(scale.bases) else NO_REAL

    return Paper(
        "Data-oblivious critical layers, measured",
        plan.scale_of,
        study.reproduce,
        lambda results, scale: (tables.introduction(results, scale), tables.make_tables(results)),
        results_json.to_json,
        missing,
    )


def _lfa() -> Paper:
    from keylayers.papers.lfa import study, tables

    return Paper(
        "Layer-wise feature analysis, measured",
        study.scale_of,
        study.reproduce,
        lambda results, scale: (tables.introduction(results, scale), tables.make_tables(results)),
        tables.to_json,
        lambda scale: None if len(scale.watched) > 1 or scale == study.scale_of("smoke") else NO_IMAGES,
    )


def _ssft() -> Paper:
    from keylayers.papers.ssft import study, tables

    return Paper(
        "Suppressing shortcuts, measured",
        study.scale_of,
        study.reproduce,
        lambda results, scale: (tables.introduction(results, scale), tables.make_tables(results)),
        tables.to_json,
        lambda scale: None if len(scale.cleansings) > 1 or scale == study.scale_of("smoke") else NO_IMAGES,
    )


def _clat() -> Paper:
    from keylayers.papers.clat import study, tables

    return Paper(
        "CLAT and its controls, measured",
        study.scale_of,
        study.reproduce,
        lambda results, scale: (tables.introduction(results, scale), tables.make_tables(results)),
        tables.to_json,
        lambda scale: None if len(scale.hardenings) > 1 or scale == study.scale_of("smoke") else NO_IMAGES,
    )


def _any_real(named: Any) -> bool:
    return any(item.name.startswith(STORIES) for item in named)


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

MASKS = "masks"
"""A scale that only ILA has: the trial of its mask's settings."""


def load_paper(name: str, scale: str) -> Paper:
    """The experiment of a paper at a scale, imported."""
    return _ila_masks() if scale == MASKS else PAPERS[name][1]()
