import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from keylayers.criteria.path_integral import PathIntegral, score_path_integral
from keylayers.errors import Diverged
from keylayers.layers.deltas import Deltas, held_delta
from keylayers.layers.naming import named_layers
from tests.criteria.examples import Quadratic, evidence_of, mean_loss, quadratic_evidence

# Gauss-Legendre nodes and weights on [0, 1], written out.
RULES = {
    1: [(0.5, 1.0)],
    2: [(0.5 - math.sqrt(3) / 6, 0.5), (0.5 + math.sqrt(3) / 6, 0.5)],
    3: [(0.5 - math.sqrt(15) / 10, 5 / 18), (0.5, 8 / 18), (0.5 + math.sqrt(15) / 10, 5 / 18)],
}
H = 1e-4


def slope(evidence, gate: float, column: int) -> float:
    """-dL/dgate of a layer (last column: of the remainder) with all gates at one value, by central differences."""
    count = len(evidence.deltas.layers)
    sides = []
    for shift in (H, -H):
        gates = [gate + shift * (index == column) for index in range(count + 1)]
        sides.append(mean_loss(evidence, gates[:-1], gates[-1]))
    return -(sides[0] - sides[1]) / (2 * H)


@pytest.mark.parametrize("kind", ["lora", "dense"])
@pytest.mark.parametrize("points", [1, 2, 3])
def test_equals_a_written_out_rule_on_finite_differences(kind: str, points: int) -> None:
    evidence = evidence_of("gpt2", kind, double=True)  # the only tiny family that computes in float64 throughout
    layers = evidence.deltas.layers
    scores = score_path_integral(evidence, layers, PathIntegral(points=points))
    for column in (0, 3, 7, len(layers) - 1):
        expected = sum(weight * slope(evidence, node, column) for node, weight in RULES[points])
        assert scores.values[column] == pytest.approx(expected, rel=1e-5, abs=1e-8)
    rest = sum(weight * slope(evidence, node, len(layers)) for node, weight in RULES[points])
    assert scores.provenance.settings["remainder"] == pytest.approx(rest, rel=1e-5, abs=1e-8)
    assert (rest == 0) == (kind == "lora")  # a full fine-tune also moved norms and embeddings


@pytest.mark.parametrize("kind", ["lora", "dense"])
def test_completeness(kind: str) -> None:
    """The scores and the remainder sum to the real drop of the loss, the more nearly the more points."""
    evidence = evidence_of("gpt2", kind, double=True, size=0.5)
    layers = evidence.deltas.layers
    ends = [mean_loss(evidence, [gate] * len(layers), gate) for gate in (0.0, 1.0)]
    errors = []
    for points in (1, 2, 4, 8):
        scores = score_path_integral(evidence, layers, PathIntegral(points=points))
        noted = scores.provenance.settings
        assert (noted["loss_base"], noted["loss_tuned"]) == pytest.approx(ends, rel=1e-9)
        error = abs(scores.values.sum() + noted["remainder"] - (ends[0] - ends[1])) / abs(ends[0] - ends[1])
        assert noted["completeness_error"] == pytest.approx(error, rel=1e-6, abs=1e-9)
        errors.append(error)
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 0.005


def test_in_single_precision_completeness_holds_too() -> None:
    evidence = evidence_of("llama", "dense")
    scores = score_path_integral(evidence, evidence.deltas.layers)
    assert scores.provenance.settings["completeness_error"] < 0.005


def test_two_points_are_exact_where_the_loss_is_quadratic() -> None:
    evidence = quadratic_evidence()
    truth, layers = Quadratic(evidence), evidence.deltas.layers
    scores = score_path_integral(evidence, layers, PathIntegral(points=2))
    np.testing.assert_allclose(scores.values, -truth.gradient([0.5] * 3), rtol=1e-9)
    assert scores.values.sum() == pytest.approx(truth.loss([0.0] * 3) - truth.loss([1.0] * 3), rel=1e-9)
    assert scores.provenance.settings["completeness_error"] < 1e-9


def test_a_change_that_lowers_the_loss_scores_above_zero_and_its_opposite_below() -> None:
    evidence = quadratic_evidence()
    model, layers = evidence.model, evidence.deltas.layers
    loss, _ = evidence.loss(model, evidence.data[0])
    loss.backward()

    def step(sign: float) -> Deltas:
        changes = {"first.weight": held_delta(-sign * 1e-3 * model.first.weight.grad.clone())}
        return Deltas(layers, (changes, {}, {}), {}, "a gradient step")

    for sign in (1.0, -1.0):
        scores = score_path_integral(replace(evidence, deltas=step(sign), data=evidence.data[:1]), layers)
        assert scores.values[0] * sign > 0
        assert (scores.values[1:] == 0).all()


def test_repeats_are_groups_of_batches() -> None:
    """With as many groups as batches, each repeat is the score on that batch alone."""
    evidence = quadratic_evidence()
    layers = evidence.deltas.layers
    scores = score_path_integral(evidence, layers)
    alone = [score_path_integral(replace(evidence, data=[batch]), layers) for batch in evidence.data]
    assert scores.repeats is not None and all(one.repeats is None for one in alone)
    np.testing.assert_allclose(scores.repeats, [one.values for one in alone], rtol=1e-9)
    np.testing.assert_allclose(scores.values, (4 * scores.repeats[0] + 7 * scores.repeats[1]) / 11, rtol=1e-9)


def test_numbers_that_are_not_finite_stop_it() -> None:
    evidence = quadratic_evidence()
    layers = evidence.deltas.layers

    def loss(model, batch):
        value, rows = evidence.loss(model, batch)
        return value * (math.nan if rows == 7 else 1.0), rows

    with pytest.raises(Diverged, match=r"path_integral: the loss of batch 1 at gates of 0\.020 is nan"):
        score_path_integral(replace(evidence, loss=loss), layers)

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * math.nan

    evidence.model.second.register_forward_hook(lambda module, args, output: Poison.apply(output))
    with pytest.raises(Diverged, match=r"gradient of layer second at gates of 0\.020 is nan"):
        score_path_integral(evidence, layers)


def test_progress_counts_every_pass() -> None:
    told: list[tuple[int, int]] = []
    evidence = quadratic_evidence(progress=lambda step, steps, loss: told.append((step, steps)))
    score_path_integral(evidence, named_layers(evidence.model, "linear"), PathIntegral(points=3))
    assert told == [(step, 6) for step in range(1, 7)]
