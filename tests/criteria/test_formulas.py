"""Each criterion on a loss that is quadratic in the gates, where its formula can be written out; only its own fits."""

import copy
from collections.abc import Collection

import numpy as np
import pytest

from keylayers import criteria
from keylayers.criteria.first_step import FirstStep
from keylayers.criteria.gradient_norm import GradientNorm
from keylayers.criteria.learned_mask import LearnedMask
from keylayers.criteria.path_integral import PathIntegral
from keylayers.criteria.relative_gradient import RelativeGradient
from keylayers.criteria.signal_noise import SignalNoise
from keylayers.criteria.substitution import Substitution
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
    "signal_noise": SignalNoise(variant="spectrum"),  # of three singular values hardly one stands above noise
    "substitution": Substitution(window=2),  # of one layer it is leave_one_out
    "gradient_norm": GradientNorm("plain"),  # one batch tells no noise
    "relative_gradient": RelativeGradient("plain"),
}
COMPARING = ("first_step", "gradient_signal_noise")  # batches with one another: two at least
WEIGHTS = [getattr(BOTH.model, name).weight.detach().numpy() for name in ("first", "second", "third")]
SPECTRA = [np.linalg.svd(weight, compute_uv=False) for weight in WEIGHTS]


def spectrum_by_hand(weight: np.ndarray) -> float:
    """Of three values the quartiles lie half-way between neighbours; where no value is noise, it counts as 1."""
    values = np.linalg.svd(weight, compute_uv=False)
    edge = ((values[0] + values[1]) / 2 - (values[1] + values[2]) / 2) / 1.349 * (1 + np.sqrt(3 / 5))
    below = values[values <= edge].sum() or 1.0
    return float(values[values > edge].sum() / below / values[0])


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


MAPS = [getattr(BOTH.model, name) for name in ("first", "second", "third")]


def outputs(batch: dict) -> list[np.ndarray]:
    """What each of the maps makes of a batch; their sum less y is the error."""
    return [one(batch["x"]).detach().numpy() for one in MAPS]


def loss_without(gone: Collection[int]) -> float:
    """Squared error per row with the outputs of those maps at zero."""
    error = TRUTH.residual - sum((outputs(EVIDENCE.data[0])[place] for place in gone), np.zeros(3))
    return float(np.square(error).sum() / TRUTH.rows)


def gradient(batch: dict) -> np.ndarray:
    """Of the squared error per row in the weight and bias of a map, the same for all three: 2 e^T (x, 1) / rows."""
    x = np.concatenate([batch["x"].numpy(), np.ones((len(batch["x"]), 1))], axis=1)
    return 2 * (sum(outputs(batch)) - batch["y"].numpy()).T @ x / len(x)


def sizes() -> np.ndarray:
    return np.array([np.sqrt(sum(float(one.detach().square().sum()) for one in part.parameters())) for part in MAPS])


def signal_over_noise() -> float:
    each = np.stack([gradient(batch) for batch in BOTH.data])
    return float((each.mean(0) ** 2 - each.var(0, ddof=1) / 2).sum() / each.var(0, ddof=1).sum())


def information() -> float:
    """Mean over rows of |2 e|^2 (|x|^2 + 1)."""
    x = EVIDENCE.data[0]["x"].numpy()
    return float((4 * np.square(TRUTH.residual).sum(1) * (np.square(x).sum(1) + 1)).mean())


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
    "signal_noise": lambda: np.array([spectrum_by_hand(weight) for weight in WEIGHTS]),
    "condition_number": lambda: np.array([-np.log10(np.linalg.cond(weight)) for weight in WEIGHTS]),
    "spectral_exponent": lambda: np.array([1 + 1 / np.log(one[0] ** 2 / one[1] ** 2) for one in SPECTRA]),
    "depth_only": lambda: np.array([1, 3, 5]) / 6,
    "type_only": lambda: np.array([2, 1, 0]) + np.random.default_rng(0).random(3),
    "ablation": lambda: np.array([loss_without([place]) - loss_without([]) for place in range(3)]),
    # Of a quadratic loss: the mean of what a map costs when it goes first and when it goes last.
    "shapley": lambda: np.array(
        [
            (loss_without([one]) - loss_without([]) + loss_without([0, 1, 2]) - loss_without({0, 1, 2} - {one})) / 2
            for one in range(3)
        ]
    ),
    "substitution": lambda: np.array(
        [TRUTH.loss(1 - np.array(w)) - TRUTH.loss(ALL) for w in ([1, 1, 0], [0, 1, 1], [0, 1, 1])]
    ),
    "gradient_norm": lambda: np.full(3, np.linalg.norm(gradient(EVIDENCE.data[0]))),
    "relative_gradient": lambda: np.linalg.norm(gradient(EVIDENCE.data[0])) / sizes(),
    "gradient_signal_noise": lambda: np.full(3, signal_over_noise()),
    "fisher": lambda: np.full(3, information()),
    "random": lambda: np.random.default_rng(0).random(3),
}


def values(name: str) -> np.ndarray:
    evidence = BOTH if name in COMPARING else EVIDENCE
    return criteria.get(name)(evidence, LAYERS, SETTINGS.get(name)).values


def fits(name: str, formula: str) -> bool:
    return np.allclose(values(name), FORMULAS[formula](), rtol=1e-5, atol=1e-9)


def test_every_criterion_has_a_formula() -> None:
    """Those of blocks and skips, which linear maps that add do not have, and those of images are in
    test_observing_formulas.py and in tests of their own."""
    found = {name: criteria.get(name) for name in criteria.CRITERIA}
    assert FORMULAS.keys() == {
        name for name, one in found.items() if not (one.granularities or one.images or one.labelled)
    }


@pytest.mark.parametrize("name", FORMULAS)
def test_its_own_formula_fits_and_no_other(name: str) -> None:
    assert {formula for formula in FORMULAS if fits(name, formula)} == {name}


def test_on_a_quadratic_the_path_integral_is_the_mean_of_taking_out_and_putting_in() -> None:
    """... and also the Shapley value: interactions are shared equally."""
    np.testing.assert_allclose(values("path_integral"), (values("leave_one_out") + values("add_one_in")) / 2, rtol=1e-9)
