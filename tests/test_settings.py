"""Every setting of every criterion and action: what cannot be is refused as it is made, before anything is loaded."""

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import pytest

from keylayers import criteria
from keylayers.actions.cleansing import Cleanse
from keylayers.actions.finetuning import TuneSettings
from keylayers.actions.hardening import HardenSettings
from keylayers.actions.robust_finetuning import RiftSettings
from keylayers.actions.screening import ScreenSettings
from keylayers.criteria.protocol import CriterionSettings
from keylayers.errors import BadInput, KeylayersError, UnknownName
from keylayers.exports.target import ExportSettings
from keylayers.maths.attacks import Ball
from keylayers.measures.attacks import Pgd
from keylayers.scores.rank_convergence import Rule
from keylayers.settings import Count, Inside, Natural, Positive, Seed, Settings, _rules
from keylayers.training.adapters import LoraSettings
from keylayers.training.images import ImageTraining
from keylayers.training.trainer import TrainSettings

OF_CRITERIA = [criteria.get(name).settings for name in criteria.CRITERIA]
OTHERS = [
    *(TrainSettings, ImageTraining, LoraSettings, TuneSettings, HardenSettings, Cleanse, ScreenSettings, RiftSettings),
    *(Ball, Pgd, Rule, ExportSettings),
]
FREE = {"LearnedMask.initial"}
"""Numbers that may be negative."""
OPEN = {
    *("TypeOnly.first", "Pgd.ball", "HardenSettings.attack", "HardenSettings.training", "Cleanse.training"),
    *("RiftSettings.training", "RiftSettings.attack", "TuneSettings.training", "TuneSettings.lora"),
    *("ExportSettings.model", "ExportSettings.tuned", "ExportSettings.ranks", "ExportSettings.scores"),
}
"""Settings that are checked where layers are known, that are settings themselves, or names of files."""


@pytest.mark.parametrize("settings", [*OF_CRITERIA, *OTHERS], ids=lambda kind: kind.__name__)
def test_no_setting_takes_what_it_cannot_be(settings):
    """Numbers that are none, too small or no numbers; words that nobody knows."""
    for field in fields(settings):
        name = f"{settings.__name__}.{field.name}"
        if field.name not in _rules(settings):
            assert name in OPEN, name
            continue
        wrong = ["nonsense", math.nan, math.inf, "nan", *([] if name == "ScreenSettings.tokens" else [[], {}])]
        if not isinstance(field.default, bool):
            wrong += [-1, -0.5, True, "-1"]
        if name in FREE:
            wrong = [value for value in wrong if value not in (-1, -0.5, "-1")]
        for value in wrong:
            with pytest.raises(KeylayersError) as refusal:
                settings(**{field.name: value})
            assert field.name in str(refusal.value), (field.name, value)


def test_every_criterion_declares_settings_that_are_checked_and_named_with_it():
    for name in criteria.CRITERIA:
        settings = criteria.get(name).settings
        assert issubclass(settings, CriterionSettings)
        assert settings().spelled("x", 1) == f"`settings.x=1` of {name}"


@dataclass(frozen=True)
class Some(Settings):
    steps: Count = 3
    more: Natural = 0
    seed: Seed = 0
    step: Positive | None = None
    share: Inside = 0.5
    kind: Literal["one", "two"] = "one"
    fast: bool = False
    tokens: tuple[int, ...] = ()


def test_texts_become_what_the_annotation_says():
    made = Some(steps="7", step="0.5", share="1e-3", fast="yes", tokens=["1", 2])
    assert made == Some(7, step=0.5, share=1e-3, fast=True, tokens=(1, 2)) and type(made.steps) is int
    assert Some(step="none").step is None and Some(steps=np.int64(4)) == Some(4) and Some(steps=4.0) == Some(4)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"steps": -3}, "`steps=-3`: expected a whole number of at least 1."),
        ({"steps": 10**12}, "`steps=1000000000000`: expected a whole number of at least 1 and at most 1,000,000,000."),
        ({"seed": -1}, "`seed=-1`: expected a whole number of at least 0 and at most 4,294,967,295."),
        ({"more": 1.5}, "`more=1.5`: expected a whole number of at least 0."),
        ({"step": 0}, "`step=0`: expected a number above 0."),
        ({"share": "1"}, "`share=1`: expected a number above 0 and below 1."),
        ({"fast": "maybe"}, "`fast=maybe`: expected true or false."),
        ({"tokens": "a"}, "`tokens=a`: expected a list, each a whole number."),
    ],
)
def test_a_refusal_says_what_is_expected(given, said):
    with pytest.raises(BadInput) as refusal:
        Some(**given)
    assert str(refusal.value) == said


def test_an_unknown_word_offers_the_nearest():
    with pytest.raises(UnknownName, match="unknown value of `kind` 'won'; did you mean 'two' or 'one'"):
        Some(kind="won")
