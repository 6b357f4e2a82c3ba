"""ILA's masks on trial in a planted world: SGD finds what every layer is worth, Adam finds nothing."""

from dataclasses import replace

import numpy as np
import pytest

from keylayers.errors import UnknownName
from keylayers.papers.ila import mask_settings_tables as tables
from keylayers.papers.ila.mask_settings import STEEPEST, USUAL, kinds_of, trial_of, tried
from keylayers.runs import open_run
from keylayers.scores import Provenance
from keylayers.scores.files import load, save
from keylayers.studies.pages import page
from keylayers.studies.retraining import ALL, RANDOM
from tests.papers.planted import PlantedDesk

GATES, LOSSES = [0.1, 0.5, 0.9], [2.0, 1.0]


class Masks(PlantedDesk):
    """Masks by SGD rank as the midpoint gradient does; every mask notes its gates."""

    def keep(self, task, candidates, adapter, layers):
        loss = super().keep(task, candidates, adapter, layers)["test"]
        return {"test": loss, "calibration": loss}

    def score(self, task, layers, criterion, settings, adapter, records, **others):
        steep = criterion == "learned_mask" and settings["optimiser"] == "sgd"
        place = super().score(
            task, layers, "path_integral" if steep else criterion, settings, adapter, records, **others
        )
        if criterion == "learned_mask":
            file = self.run.path / place["file"]
            save(replace(load(file), provenance=Provenance(settings={"gates": [GATES], "losses": [LOSSES]})), file)
        return place


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """What is known of one task after each part of the trial."""
    trial = trial_of("masks")
    with open_run(tmp_path_factory.mktemp("trial"), "trial", {}) as run:
        return list(tried(Masks(run), replace(trial, tasks=trial.tasks[:1])))


def test_a_mask_is_kept_and_trained_beside_random_layers_of_its_kinds_and_supported_where_it_finds_the_truth(parts):
    ((scored,), (trained,)) = parts
    assert not scored.retrained and {kinds_of(USUAL), RANDOM, ALL} <= scored.kept.keys()
    assert {USUAL, STEEPEST, kinds_of(STEEPEST), "midpoint", RANDOM, ALL} <= trained.retrained.keys()
    np.testing.assert_allclose(tables.gains([trained], "kept", ALL), 1.0)
    claims = {one.text: one.effect.interval for one in tables.gain_claims([trained], "kept")}
    assert claims[f"kept: {STEEPEST} beats {USUAL}"].low > 0 > claims[f"kept: {USUAL} beats {RANDOM}"].low
    claims = {one.text: one.effect.interval for one in tables.agreement_claims([trained])}
    assert claims[f"{STEEPEST} agrees more with midpoint than {USUAL}"].low > 0.5
    assert f"{STEEPEST} agrees more with midpoint than {STEEPEST}" not in claims


def test_the_page_says_how_far_the_gates_went_and_what_they_agree_with(parts):
    (trained,) = parts[-1]
    text = page("Title", tables.introduction([trained], "masks"), tables.tables([trained]))
    assert f"| {USUAL} | 0.100, 0.500, 0.900 | 2 |" in text and "| midpoint |  |  |" in text
    assert "pirate: trained from the start" in text and "5 seeds, each a procedure" in text
    rho = tables.beside([trained], STEEPEST, "midpoint")
    assert rho.min() > 0.9 > tables.beside([trained], USUAL, "midpoint").max()
    stored = tables.to_json([trained])["tasks"][0]["rankings"][USUAL]
    assert len(stored) == 5 and stored[0]["gates"] == [GATES]


def test_the_scale_has_a_name():
    with pytest.raises(UnknownName, match="masks"):
        trial_of("small")
