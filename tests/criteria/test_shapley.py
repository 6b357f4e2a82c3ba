"""Shapley values against their definition over all coalitions, on models whose layers really are taken out."""

from dataclasses import replace
from itertools import combinations
from math import factorial

import numpy as np
import pytest
import torch

from keylayers.criteria.ablation import score_ablation
from keylayers.criteria.shapley import Shapley, score_shapley
from keylayers.layers.naming import named_layers
from keylayers.measures.measure import Measure, wrong_tokens
from tests.criteria.test_ablation import mean_loss, solved_by, text_evidence
from tests.layers.helpers import full_state, same_state
from tests.layers.test_ablating import silenced_copy


def by_definition(evidence, layers) -> np.ndarray:
    """Sum over coalitions S without l of |S|! (n - |S| - 1)! / n! (cost(S gone and l) - cost(S gone))."""
    count, cost = len(layers), {}
    for size in range(count + 1):
        for gone in combinations(range(count), size):
            cost[gone] = mean_loss(silenced_copy(evidence.model, [layers[i].name for i in gone]), evidence)
    values = np.zeros(count)
    for gone in cost:
        for one in set(range(count)) - set(gone):
            weight = factorial(len(gone)) * factorial(count - len(gone) - 1) / factorial(count)
            values[one] += weight * (cost[tuple(sorted((*gone, one)))] - cost[gone])
    return values


@pytest.mark.parametrize(("name", "granularity"), [("llama", "block"), ("t5", "block"), ("gpt2", "sublayer")])
def test_all_orders_give_the_values_of_the_definition(name: str, granularity: str) -> None:
    evidence = text_evidence(name, granularity)
    layers = named_layers(evidence.model, granularity)[:4]
    before = full_state(evidence.model)
    scores = score_shapley(evidence, layers, Shapley(permutations=24))
    assert same_state(before, full_state(evidence.model))
    assert scores.repeats is None and scores.provenance.settings["exact"]
    np.testing.assert_allclose(scores.values, by_definition(evidence, layers), atol=3e-6)


def test_in_every_order_the_values_sum_to_the_cost_of_removing_all() -> None:
    evidence = text_evidence("qwen2", "sublayer")
    layers = named_layers(evidence.model, "sublayer")
    scores = score_shapley(evidence, layers, Shapley(permutations=5, seed=2))
    none = silenced_copy(evidence.model, [layer.name for layer in layers])
    total = mean_loss(none, evidence) - mean_loss(evidence.model, evidence)
    assert scores.repeats.shape == (5, 6)
    np.testing.assert_allclose(scores.repeats.sum(1), total, atol=2e-6)
    np.testing.assert_allclose(scores.values, scores.repeats.mean(0), atol=1e-15)
    assert scores.provenance.settings["total"] == pytest.approx(total, abs=2e-6)


@pytest.mark.parametrize("seeds", [5, pytest.param(12, marks=pytest.mark.long)])
def test_sampling_tends_to_the_exact_values_and_the_intervals_hold_them(seeds: int) -> None:
    evidence = solved_by(2, blocks=7)
    layers = named_layers(evidence.model, "block")
    exact = score_shapley(evidence, layers, Shapley(permutations=24)).values
    assert exact.argmax() == 2
    held = []
    for seed in range(seeds):
        sampled = score_shapley(evidence, layers, Shapley(permutations=12, seed=seed))
        low, high = sampled.interval().T
        held += ((low <= exact + 1e-12) & (exact <= high + 1e-12)).tolist()
    assert np.mean(held) > 0.85  # of 95 % intervals
    again = score_shapley(evidence, layers, Shapley(permutations=12, seed=seeds - 1))
    assert again.values.tolist() == sampled.values.tolist()


def test_twins_share_what_taking_out_one_alone_does_not_show() -> None:
    """Two blocks do one thing, and either is enough: ablation sees no loss in either, Shapley values see both."""
    evidence = solved_by(0)
    model = evidence.model
    with torch.no_grad():
        for one in model.blocks:
            one.out.weight.zero_()
            one.out.bias.zero_()
        model.blocks[1].out.bias.fill_(1.0)
        model.blocks[3].out.bias.fill_(1.0)
        model.head.weight.fill_(1.0)
    data = [{"x": torch.zeros(4, 6, dtype=torch.float64), "y": torch.zeros(4, 2, dtype=torch.float64)}]

    def saturated(one, batch):
        return 4.0 - (one(batch["x"])[:, 0]).clamp(max=6.0).sum() / 6.0, 4

    evidence = replace(evidence, data=data, loss=saturated)
    layers = named_layers(model, "block")
    np.testing.assert_allclose(score_ablation(evidence, layers).values, 0, atol=1e-12)
    np.testing.assert_allclose(score_shapley(evidence, layers, Shapley(24)).values, [0, 0.5, 0, 0.5], atol=1e-12)


def test_as_many_blocks_are_computed_as_forecast_for_exact_values() -> None:
    evidence = text_evidence("llama", "block")
    layers, calls = named_layers(evidence.model, "block"), []
    for block in evidence.model.model.layers:
        block.input_layernorm.register_forward_pre_hook(lambda *_: calls.append(1))
    score_shapley(evidence, layers, Shapley(6))
    assert len(calls) / 3 == pytest.approx(score_shapley.work(layers, Shapley(6), 2).all_forwards)
    assert len(calls) / 2 == 3 + 1 * 2 + 2 * 1 + 4 * 0  # the whole; the sets whose highest is the first, second, third


def test_orders_take_a_quarter_of_the_squared_number_of_blocks() -> None:
    evidence = text_evidence("llama", "block")
    layers = named_layers(evidence.model, "block")
    taken = []
    for seed in range(30):
        calls: list[int] = []
        hooks = [
            block.input_layernorm.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            for block in evidence.model.model.layers
        ]
        score_shapley(evidence, layers, Shapley(2, seed))
        for hook in hooks:
            hook.remove()
        taken.append(len(calls) / 3)
    assert np.mean(taken) == pytest.approx(score_shapley.work(layers, Shapley(2), 2).all_forwards, rel=0.05)
    assert score_shapley.work(layers, Shapley(2), 2).all_forwards == pytest.approx(2 * (1 + 2 * 3 * 2 / 4 / 3))


def test_other_measures_by_batch_and_by_record() -> None:
    evidence = text_evidence("llama", "block")
    layers = named_layers(evidence.model, "block")

    def each(model):
        return np.concatenate([_wrong_by_row(model, batch) for batch in evidence.data])

    by_batch = score_shapley(replace(evidence, measure=Measure("tokens", by_batch=wrong_tokens)), layers, Shapley(2))
    by_record = score_shapley(replace(evidence, measure=Measure("generated", by_record=each)), layers, Shapley(2))
    counted = sum(wrong_tokens(evidence.model, batch)[1] for batch in evidence.data)
    np.testing.assert_allclose(by_batch.repeats * counted, by_record.repeats * len(each(evidence.model)), atol=1e-9)
    exact = [
        score_shapley(replace(evidence, measure=one), layers)
        for one in (Measure("tokens", by_batch=wrong_tokens), Measure("generated", by_record=each))
    ]
    np.testing.assert_allclose(exact[0].values * counted, exact[1].values * len(each(evidence.model)), atol=1e-9)


def _wrong_by_row(model, batch) -> list[float]:
    rows = [{key: value[row : row + 1] for key, value in batch.items()} for row in range(len(batch["labels"]))]
    return [float(wrong_tokens(model, one)[0]) for one in rows]


def test_many_layers_are_sampled() -> None:
    evidence = text_evidence("llama", "linear")
    layers = named_layers(evidence.model, "linear")
    assert len(layers) == 22 and score_shapley(evidence, layers, Shapley(1)).repeats is None
