"""Each criterion on a loss that is quadratic in the gates, where its formula can be written out; only its own fits."""

import copy

import numpy as np
import pytest

from keylayers import criteria
from keylayers.criteria.first_step import FirstStep
from keylayers.criteria.learned_mask import LearnedMask
from keylayers.criteria.path_integral import PathIntegral
from keylayers.training.adapters import LoraSettings, attach_lora
from tests.criteria.examples import Quadratic, quadratic_evidence

BOTH = quadratic_evidence()
EVIDENCE = quadratic_evidence(data=BOTH.data[1:])  # one batch: what a first step of the masks sees is certain
LAYERS = EVIDENCE.deltas.layers
TRUTH = Quadratic(EVIDENCE)
NONE, ALL, ALONE = np.zeros(3), np.ones(3), np.eye(3)
GATE = 1 / (1 + np.exp(-1.0))  # of a score of 1
SETTINGS = {
    "learned_mask": LearnedMask(initial=1.0, optimiser="sgd", learning_rate=3.0, steps=1),
    "path_integral": PathIntegral(points=2),
    "first_step": FirstStep(rank=2, seed=5),
}


def first_step_by_hand() -> np.ndarray:
    """Squared error of y = W x + 2 B A x at B = 0 has the gradient 4 e (A x)^T in B, summed over a batch's rows."""
    gains = []
    adapted = attach_lora(copy.deepcopy(BOTH.model), LAYERS, LoraSettings(rank=2, alpha=4.0), seed=5)
    errors = [(Quadratic(quadratic_evidence(data=[batch])).residual, batch["x"].numpy()) for batch in BOTH.data]
    for name in ("first", "second", "third"):
        down = dict(adapted.named_parameters())[f"base_model.model.{name}.lora_A.default.weight"].detach().numpy()
        one, other = (4 * error.T @ (x @ down.T) / len(x) for error, x in errors)
        gains.append((one * other / np.sqrt((one**2 + other**2) / 2)).sum())
    return np.array(gains)


FORMULAS = {
    "learned_mask": lambda: 1 - 3 * TRUTH.gradient(GATE * ALL) * GATE * (1 - GATE),
    # The gradient of a quadratic is linear along the path, so its mean is its value at the middle.
    "path_integral": lambda: -TRUTH.gradient(ALL / 2),
    "leave_one_out": lambda: np.array([TRUTH.loss(ALL - one) - TRUTH.loss(ALL) for one in ALONE]),
    "add_one_in": lambda: np.array([TRUTH.loss(NONE) - TRUTH.loss(one) for one in ALONE]),
    "delta_norm": lambda: np.array(
        [
            np.sqrt(sum(np.square(delta.dense().numpy()).sum() for delta in changes.values()))
            for changes in EVIDENCE.deltas.changes
        ]
    ),
    "first_step": first_step_by_hand,
    "random": lambda: np.random.default_rng(0).random(3),
}


def values(name: str) -> np.ndarray:
    evidence = BOTH if name == "first_step" else EVIDENCE  # two batches at least: a step is judged on another
    return criteria.get(name)(evidence, LAYERS, SETTINGS.get(name)).values


def fits(name: str, formula: str) -> bool:
    return np.allclose(values(name), FORMULAS[formula](), rtol=1e-5, atol=1e-9)


def test_every_criterion_has_a_formula() -> None:
    assert FORMULAS.keys() == criteria.CRITERIA.keys()


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_its_own_formula_fits_and_no_other(name: str) -> None:
    assert {formula for formula in FORMULAS if fits(name, formula)} == {name}


def test_on_a_quadratic_the_path_integral_is_the_mean_of_taking_out_and_putting_in() -> None:
    """... and also the Shapley value: interactions are shared equally."""
    np.testing.assert_allclose(values("path_integral"), (values("leave_one_out") + values("add_one_in")) / 2, rtol=1e-9)
