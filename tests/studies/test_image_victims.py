"""Victims of the vision studies: stored and read back with their triggers; what an attack needs is told."""

import numpy as np
import pytest
import torch

from keylayers.errors import BadInput, UnknownName
from keylayers.measures.backdoor import backdoor_figures
from keylayers.studies.image_task import ImageTask
from keylayers.studies.image_victims import KINDS, TARGET, Backdoor, make_victim, victim
from keylayers.training.images import ImageTraining
from keylayers.training.input_aware import InputAware
from tests.papers.little_images import LITTLE, SIZES, watched


@pytest.mark.parametrize("kind", ["patch", "input-aware"])
def test_a_stored_victim_does_what_it_did_when_it_was_trained(kind, tmp_path):
    task = watched(network=LITTLE).task
    attack = {"kind": kind, "strength": 3.0, "share": 0.3}
    made = make_victim(tmp_path, task=task.fields(), seed=1, attack=attack)
    found = victim(tmp_path, ImageTask.of(task.fields()), 1, Backdoor(**attack), made["file"])
    again = backdoor_figures(found.model, found.x, found.y, found.attacked())
    assert again.as_dict() == made["figures"] and isinstance(found.trigger, InputAware) == (kind == "input-aware")
    assert found.classes == 10 and not (found.attacked().labels == TARGET).any()
    assert make_victim(tmp_path, task=task.fields(), seed=1, attack=attack) == made


def test_a_training_that_diverges_leaves_no_victim_and_says_so(tmp_path):
    task = ImageTask("digits", sizes=SIZES, training=ImageTraining(epochs=2, learning_rate=1e30))
    made = make_victim(tmp_path, task=task.fields(), seed=0, attack={"kind": "patch"})
    assert made["file"] is None and made["diverged"].startswith("the loss is")
    assert made["figures"]["attack_success_rate"] == [0.0, 0.0, 0.0]


def test_seeds_have_other_images_and_other_networks():
    task = ImageTask("digits", sizes=SIZES, training=ImageTraining(epochs=1))
    first, second = (task.parts(seed).train.index for seed in (0, 1))
    assert set(first) != set(second)
    one, other, again = (task.untrained(seed).conv1.weight for seed in (0, 1, 0))
    assert not torch.equal(one, other) and torch.equal(one, again)


def test_a_task_may_hold_reference_and_calibration_from_the_own_test_part(tmp_path):
    grey = np.zeros((60, 4, 4), np.uint8)
    file, classes = tmp_path / "own.npz", np.arange(60) % 3
    np.savez(file, x_train=grey, y_train=classes, x_test=grey, y_test=classes)
    sizes = {"train": 30, "reference": 20, "calibration": 10, "test": 30}
    off, on = (ImageTask("own", str(file), sizes=sizes, held_from_test=held) for held in (False, True))
    for task, first in ((off, 0), (on, 60)):
        parts = ImageTask.of(task.fields()).parts(0)
        assert (parts.test.index >= 60).all() and (parts.train.index < 60).all()
        assert ((first <= parts.reference.index) & (parts.reference.index < first + 60)).all()
        assert ((first <= parts.calibration.index) & (parts.calibration.index < first + 60)).all()
    assert "held_from_test" not in off.fields() and on.fields()["held_from_test"]


def test_triggers_are_scaled_to_the_images_and_unknown_attacks_are_told(tmp_path):
    assert Backdoor("patch").trigger(8).size == 2 and Backdoor("patch").trigger(32).size == 3
    assert Backdoor("sinusoid", 2.0).trigger(8).frequency == pytest.approx(1.5)
    with pytest.raises(UnknownName, match="unknown backdoor 'pach'; did you mean 'patch'"):
        Backdoor("pach")
    with pytest.raises(BadInput, match="is trained with the model"):
        Backdoor("input-aware").trigger(8)
    with pytest.raises(BadInput, match="needs a model trained on clean images"):
        attack = {"kind": "label-consistent", "strength": 1.0, "share": 0.5}
        make_victim(tmp_path, task=watched().task.fields(), seed=0, attack=attack)
    assert set(KINDS) == {"patch", "blend", "sinusoid", "warp", "label-consistent", "input-aware"}
