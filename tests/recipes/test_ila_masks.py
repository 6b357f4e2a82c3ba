"""ILA's masks on trial in miniature: every mask is judged beside its controls; the page follows from the figures."""

import dataclasses

import numpy as np
import pytest

from keylayers.errors import UnknownName
from keylayers.recipes import ila_masks, ila_masks_tables
from keylayers.recipes.bench import Task
from keylayers.recipes.ila_masks import MASKS, STEEPEST, USUAL, Trial, kinds_of, reproduce, trial_of
from keylayers.recipes.retraining import ALL, RANDOM, Rates
from keylayers.runs import open_run
from keylayers.studies.arms import Budget
from keylayers.studies.pages import page
from keylayers.training.adapters import LoraSettings
from keylayers.training.train import TrainSettings

ON_TRIAL = (USUAL, STEEPEST, f"{USUAL}, training records")


def short(name: str):
    way = MASKS[name]
    return dataclasses.replace(way, settings={**way.settings, "steps": 3})


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    """All that is known after each part of a trial of one tiny task."""
    training = TrainSettings(steps=3, batch_size=4, learning_rate=1e-2, save_every=10**9)
    task = Task("small", world.inputs(), training, LoraSettings(rank=2, alpha=4.0))
    trial = Trial((task,), seeds=2, budget=Budget(0.4), real_rates=Rates((1e-2,)), draws=1)
    trial = dataclasses.replace(trial, masks={name: short(name) for name in ON_TRIAL}, trained=(STEEPEST,))
    with open_run(tmp_path_factory.mktemp("trial"), "trial", {}) as run:
        return list(reproduce(trial, run, processes=1))


def test_each_mask_is_kept_and_trained_beside_random_layers_of_its_kinds(found):
    ((scored,), (trained,)) = found
    assert not scored.retrained and {kinds_of(name) for name in ON_TRIAL} | {RANDOM, ALL} <= scored.kept.keys()
    assert trained.retrained.keys() == {"midpoint", STEEPEST, kinds_of(STEEPEST), RANDOM, ALL}
    calibrated, on_training = (trained.scores[name][0].values for name in (USUAL, ON_TRIAL[2]))
    assert not np.array_equal(calibrated, on_training), "learnt on other records"
    np.testing.assert_allclose(ila_masks_tables.gains([trained], "kept", ALL), 1.0)


def test_the_page_says_how_far_the_gates_went_and_what_they_agree_with(found):
    (trained,) = found[-1]
    text = page("Title", ila_masks_tables.introduction([trained], "masks"), ila_masks_tables.tables([trained]))
    lowest, median, highest = np.mean([one.provenance.settings["gates"][0] for one in trained.scores[USUAL]], axis=0)
    assert 0.97 < lowest <= median <= highest < 0.99  # three steps of 0.01 from 4
    assert f"| {USUAL} | {lowest:.3f}, {median:.3f}, {highest:.3f} | 3 |" in text
    rho = ila_masks_tables.beside([trained], STEEPEST, "midpoint")
    assert f"{rho.mean():.3f} ±" in text and f"kept: {STEEPEST} beats random layers of its kinds" in text
    assert len(ila_masks_tables.plain([trained])["tasks"][0]["rankings"][USUAL]) == 2


def test_the_scale_has_a_name():
    assert [task.control for task in trial_of("masks").tasks][:1] == [None]
    with pytest.raises(UnknownName, match="masks"):
        ila_masks.trial_of("small")
