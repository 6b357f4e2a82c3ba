"""A base on a GPU and what tuning changed on a disk: nothing that meets the model may be left on the CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from keylayers import criteria
from keylayers.actions.cleansing import Cleanse, cleanse
from keylayers.actions.hardening import HardenSettings, harden
from keylayers.actions.robust_finetuning import RiftSettings, rift
from keylayers.actions.screen_fitting import fit_screen
from keylayers.layers.deltas import deltas_from_checkpoints
from keylayers.layers.gating import gate_gradients, gated
from keylayers.layers.naming import named_layers
from keylayers.layers.tensor_swap import frozen
from keylayers.layers.tensors import tensors_in_memory
from keylayers.maths.attacks import Ball
from keylayers.measures.attacks import Pgd
from keylayers.measures.objective import language_loss
from keylayers.models import deltas_of
from keylayers.models.digits import DigitsResNet
from keylayers.scores import Selection
from keylayers.training.images import ImageTraining
from tests.criteria.examples import evidence_of, perturbed, suited
from tests.elsewhere import AWAY, Away, elsewhere, sent
from tests.layers.helpers import noisy_copy, with_lora
from tests.matrix.test_criteria import SETTINGS
from tests.tiny_models import build, inputs

OF_IMAGES = {"skip_suppression": "cifar-resnet", "feature_fragility": "vit", "robust_capacity": "vit"}
OF_IMAGES["class_separation"] = "vit"
FAMILIES = ("llama", "llama-tied", "gpt2", "gemma2", "qwen3", "gpt-neox", "phi3", "olmo2", "mistral")
"""Of the other criteria, in turn."""


def test_what_a_gpu_refuses_is_refused() -> None:
    with elsewhere():
        there = torch.ones(2).to(AWAY)
        assert isinstance(there, Away) and there.tolist() == [1, 1] and not isinstance(there.cpu(), Away)
        assert (there * torch.tensor(2.0)).tolist() == [2, 2]
        for mixed in (lambda: there + torch.ones(2), lambda: torch.equal(there, torch.ones(2))):
            with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
                mixed()


@pytest.mark.parametrize(
    ("name", "granularity", "kind"),
    [("llama-tied", "linear", "checkpoint"), ("llama", "block", "adapter")],
)
def test_a_tuned_model_on_disk_meets_a_base_elsewhere(tmp_path: Path, name: str, granularity: str, kind: str) -> None:
    tuned = noisy_copy(build(name)) if kind == "checkpoint" else with_lora(build(name), trainable_token_indices=[5])
    tuned.save_pretrained(str(tmp_path))
    here, there = build(name), sent(build(name))
    batch = inputs(name, batch=1, seq=4)
    layers = named_layers(here, granularity)
    wanted = deltas_of(here, tmp_path, layers)
    with elsewhere():
        deltas = deltas_of(there, tmp_path, layers)
        assert torch.allclose(deltas.norms(), wanted.norms(), rtol=1e-5)
        far = {key: value.to(AWAY) for key, value in batch.items()}
        with frozen(there):
            found, rest = gate_gradients(there, deltas, 0.5, lambda: language_loss(there, far)[0].backward())
        with torch.no_grad(), gated(there, deltas.held(), deltas.uniform(1.0)):
            loss = float(language_loss(there, far)[0])
    with frozen(here):
        near, also = gate_gradients(here, wanted, 0.5, lambda: language_loss(here, batch)[0].backward())
    with torch.no_grad(), gated(here, wanted, wanted.uniform(1.0)):
        assert loss == pytest.approx(float(language_loss(here, batch)[0]), rel=1e-4)
    assert torch.allclose(found, near, rtol=1e-3, atol=1e-5) and rest == pytest.approx(also, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("place", "name"), enumerate(criteria.CRITERIA))
def test_a_criterion_scores_a_model_elsewhere_with_data_and_a_tuned_model_that_are_here(place: int, name: str) -> None:
    model = OF_IMAGES.get(name, FAMILIES[place % len(FAMILIES)])
    here, there = (evidence_of(model, "dense", every=8) for _ in range(2))
    layers = suited(name, here)[:: 3 if name == "skip_suppression" else 1]
    tuned = perturbed(here.model)
    wanted = criteria.get(name)(here, layers, SETTINGS.get(name))
    with elsewhere():
        base = sent(there.model)
        deltas = deltas_from_checkpoints(base, tuned, there.deltas.layers)
        found = criteria.get(name)(
            replace(there, model=base, weights=tensors_in_memory(base), deltas=deltas), layers, SETTINGS.get(name)
        )
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-3, atol=1e-3)


ONCE, ATTACK = ImageTraining(epochs=1, batch_size=10), Pgd(Ball(0.1), 2)


@pytest.mark.parametrize("action", ["harden", "cleanse", "rift", "screen"])
def test_an_action_changes_a_model_elsewhere_as_it_does_here_with_images_that_are_here(action: str) -> None:
    x, y = torch.rand(80, 1, 8, 8), torch.arange(80) % 10

    def acted(model: DigitsResNet) -> object:
        conv = Selection.of(named_layers(model, "conv"), names=["layer2.0.conv1"])
        if action == "harden":
            return harden(model, conv, x, y, HardenSettings(attack=ATTACK, training=ONCE))
        if action == "cleanse":
            skip = Selection.of(named_layers(model, "skip"), names=["layer2.0.shortcut"])
            return cleanse(model, skip, x, y, Cleanse(0.5, training=ONCE))
        if action == "rift":
            return rift(model, conv, x[:20], y[:20], RiftSettings(ONCE, ATTACK, 2), calibration=(x[20:], y[20:]))
        known, held = ([{"x": x[part], "labels": y[part]}] for part in (slice(0, 40), slice(40, 80)))
        screen = fit_screen(model, conv, known, held)
        return screen.scores(model, {"x": x})

    def network() -> DigitsResNet:
        torch.manual_seed(0)
        return DigitsResNet(1, (4, 6, 8)).eval()

    here, there = network(), sent(network())
    wanted = acted(here)
    with elsewhere():
        found = acted(there)
        state = {name: value.inner for name, value in there.state_dict().items() if isinstance(value, Away)}
    for name, value in here.state_dict().items():
        if name in state:
            torch.testing.assert_close(state[name], value, rtol=1e-3, atol=1e-4)
    if isinstance(wanted, np.ndarray):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    assert type(found) is type(wanted) and state
