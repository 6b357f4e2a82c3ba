"""Planted truth: layers whose change is useful among layers of noise with the same relative norm."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.planted import Planting, auroc, planted, study, table, toy_batches, toy_model
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import parameters_of
from tests import tiny_models
from tests.criteria.examples import batches_of

SETTINGS = Planting(steps=30)
ARMS = ("path_integral, 8 points", "path_integral, 1 point", "delta_norm", "random")


@pytest.fixture(scope="session")
def toy() -> nn.Module:
    return toy_model()


def batches(count: int, size: int, seed: int) -> Sequence[dict[str, torch.Tensor]]:
    return toy_batches("shifted", count, size, seed)


@pytest.mark.parametrize("plantings", [1, pytest.param(5, marks=pytest.mark.long)])
def test_path_integral_finds_the_useful_layers_in_every_planting(toy: nn.Module, plantings: int) -> None:
    found, truths = study(toy, batches(50, 16, 7), batches(4, 32, 8), SETTINGS, plantings=plantings, arms=ARMS)
    print("\n".join(table(found, truths, SETTINGS)))
    for truth in truths:  # the premise: what is called useful is, and what is called noise is not
        assert truth.losses["useful alone"] < 0.8 * truth.losses["base"]
        assert truth.losses["noise alone"] > 0.9 * truth.losses["base"]
        assert truth.losses["both"] < 0.8 * truth.losses["base"]
    assert len({tuple(truth.useful) for truth in truths}) == plantings
    assert min(found["path_integral, 8 points"]) >= 0.95
    # Size tells nothing of usefulness here, and chance nothing at all.
    assert np.mean(found["delta_norm"]) < 0.8 and np.mean(found["random"]) < 0.8


def test_every_change_has_the_same_relative_norm() -> None:
    model, data = tiny_models.build("llama"), batches_of("llama")
    layers = named_layers(model, "linear")
    settings = Planting(useful=4, relative=0.3, steps=9, carries=-10)
    truth = planted(model, layers, data, data, settings, seed=2)
    assert truth.useful.sum() == 4 and len(truth.useful) == len(layers)
    for layer, changes in zip(layers, truth.deltas.changes, strict=True):
        (name, delta), *others = changes.items()
        weight = parameters_of(model)[name].detach()
        assert not others and name == layer.parameters[0]
        assert float(delta.dense().norm() / weight.norm()) == pytest.approx(0.3, rel=1e-5)


def test_the_seed_decides_and_the_model_is_left_as_it_was() -> None:
    model, data = tiny_models.build("llama"), batches_of("llama")
    layers = named_layers(model, "linear")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, same, other = (
        planted(model, layers, data, data, Planting(useful=4, steps=9, carries=-10), seed=seed) for seed in (1, 1, 2)
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.requires_grad and one.grad is None for one in model.parameters())
    np.testing.assert_array_equal(first.useful, same.useful)
    np.testing.assert_array_equal(first.deltas.norms(), same.deltas.norms())
    assert first.losses == same.losses != other.losses


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    useful = np.array([True, False, True, False, False])
    assert auroc(np.array([5.0, 1.0, 4.0, 2.0, 3.0]), useful) == 1
    assert auroc(np.array([1.0, 5.0, 2.0, 4.0, 3.0]), useful) == 0
    assert auroc(np.zeros(5), useful) == auroc(np.array([1, 1, 1 + 1e-7, 1, 1 - 1e-7]), useful) == 0.5
    scores = np.random.default_rng(0).integers(0, 4, 5).astype(float)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[useful] for b in scores[~useful]]
    assert auroc(scores, useful) == pytest.approx(np.mean(pairs))
