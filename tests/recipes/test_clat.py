"""The hardening study in miniature: every arm from one start, few layers trained, tables on planted figures."""

import json

import numpy as np
import pytest

from keylayers.errors import UnknownName
from keylayers.layers.naming import named_layers
from keylayers.recipes.clat import ARMS, RIFT, START, Hardening, Results, Scale, digits, reproduce, scale_of
from keylayers.recipes.clat_cells import ALL, RANDOM, Plan
from keylayers.recipes.clat_tables import claims, introduction, plain, tables
from keylayers.recipes.image_tasks import ImageTask
from keylayers.runs import open_run
from keylayers.studies.pages import page
from keylayers.training.images import ImageTraining

PLAN = Plan(0.1, 1, start_epochs=2, epochs=2, every=1, share=0.05, learning_rate=0.05, test_steps=2)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clat")
    sizes = {"train": 150, "reference": 1, "calibration": 40, "test": 60}
    asked = Hardening(ImageTask("few digits", sizes=sizes, training=ImageTraining(batch_size=50)), PLAN, 2)
    with open_run(folder, "study", {}) as run:
        (results,) = list(reproduce(Scale((asked,)), run, processes=1))
    return results[0], folder


def test_every_arm_trains_what_it_says(found):
    one, _ = found
    assert set(one.arms) == {START, *ARMS, *RIFT}
    network = one.hardening.task.untrained(0)
    whole, layers = sum(value.numel() for value in network.parameters()), named_layers(network, "conv")
    sizes = {layer.name: layer.size for layer in layers}
    for name, arm in ARMS.items():
        for each in one.arms[name]:
            chosen = [names for _, names in each["selections"]]
            assert each["trained"] == (whole if arm.choose == ALL else sizes[chosen[0][0]])
            assert len(chosen) == (2 if arm.again and arm.choose != ALL else 1)
            assert len(each["watched"]) == PLAN.epochs and each["best_epoch"] == int(np.argmax(each["watched"]))
    drawn = {tuple(names) for each in one.arms["random layers"] for _, names in each["selections"]}
    assert len(drawn) > 1 and ARMS["random layers"].choose == RANDOM


def test_the_worst_case_is_at_most_each_attack(found):
    one, _ = found
    for each in (each for arm in one.arms.values() for each in arm):
        for when in ("last", "best"):
            assert each[when]["robust"] <= min(each[when]["loss"], each[when]["features"]) <= each[when]["clean"]


def test_a_finished_study_is_read_back_and_its_page_says_its_figures(found, monkeypatch):
    one, folder = found
    monkeypatch.setattr("keylayers.recipes.clat_cells.DO", {})
    with open_run(folder, "study", {}) as run:
        (again,) = list(reproduce(Scale((one.hardening,)), run, processes=1))
    assert json.dumps(plain(again)) == json.dumps(plain([one]))
    text = page("Title", introduction([one], "smoke"), tables([one]))
    assert f"{one.values('CLAT', 'clean').mean():.3f} ±" in text and "null result" in text


@pytest.mark.parametrize(("rival", "verdict"), [(0.5, "supported"), (0.9, "contradicted"), (0.7, "undecided here")])
def test_claims_follow_the_accuracies(found, rival, verdict):
    noise = np.array([0.0, 0.01, -0.01, 0.02, -0.02, 0.01])

    def seen(mean: float, shift: int) -> tuple:
        values = mean + np.roll(noise, shift)
        return tuple({"last": {"robust": v, "clean": v}, "best": {}, "trained": 1} for v in values.tolist())

    planted = Results(found[0].hardening, {name: seen(rival, 1) for name in (START, *ARMS, *RIFT)})
    planted.arms["CLAT"] = seen(0.7, 0)  # type: ignore[index]
    told = {one.text: one for one in claims(planted)}
    one = told["few digits: CLAT beats random layers, robust accuracy after the last epoch"]
    assert one.verdict == verdict and one.effect.interval.estimate == pytest.approx(0.7 - rival)


def test_an_unknown_scale_is_named(monkeypatch):
    monkeypatch.delenv("KEYLAYERS_MODELS", raising=False)
    assert scale_of("small").hardenings == (digits(),)
    with pytest.raises(UnknownName, match="did you mean 'small'"):
        scale_of("smal")
