"""Condition numbers against numpy's and against peft's KappaTuneSelector."""

import numpy as np
import pytest
import torch

from keylayers.criteria.condition_number import ConditionNumber, score_condition_number
from keylayers.criteria.protocol import Evidence
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.tensors import tensors_in_memory
from tests import tiny_models
from tests.criteria.weights import held, layers_of


def evidence_of(name: str) -> tuple[Evidence, tuple[Layer, ...], torch.nn.Module]:
    model = tiny_models.build(name)
    return Evidence(weights=tensors_in_memory(model)), named_layers(model), model


def scores_of(variant: str = "corrected", **tensors: torch.Tensor) -> np.ndarray:
    settings = ConditionNumber(variant)  # type: ignore[arg-type]
    return score_condition_number(Evidence(weights=held(tensors)), layers_of(tensors), settings).values


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_equals_numpy(name: str) -> None:
    evidence, layers, model = evidence_of(name)
    kappas = [np.linalg.cond(model.get_parameter(f"{layer.name}.weight").detach().double().numpy()) for layer in layers]
    np.testing.assert_allclose(score_condition_number(evidence, layers).values, -np.log10(kappas), atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "olmoe", "mixtral", "qwen3-moe"])
def test_the_released_variant_agrees_with_pefts_selector(name: str) -> None:
    """Numbers of every linear module and fused tensor, and the order in which it selects; its own SVD is in float32."""
    helpers = pytest.importorskip("peft.helpers")
    if not hasattr(helpers, "KappaTuneSelector"):
        pytest.skip("this peft has no KappaTuneSelector")
    evidence, layers, model = evidence_of(name)
    selector = helpers.KappaTuneSelector(model, show_progress=False)
    modules = selector.get_best_targets()
    theirs = {**selector._condition_numbers, **selector._parameter_condition_numbers}
    scores = score_condition_number(evidence, layers, ConditionNumber(variant="kappatune"))
    for layer_name, value in scores.by_name().items():
        assert -value == pytest.approx(theirs[layer_name], rel=3e-4), layer_name
    ours = [layer.name for layer in scores.ranking() if layer.name in modules]
    assert ours == [one for one in modules if one in ours] and len(ours) >= 12


def test_the_released_variant_depends_on_scale_and_on_one_bad_expert_and_the_corrected_does_not() -> None:
    torch.manual_seed(3)
    matrix = torch.randn(30, 30)
    small = 1e-6 * matrix
    assert np.ptp(scores_of("corrected", a=matrix, b=small)) < 1e-6
    released = scores_of("kappatune", a=matrix, b=small)
    assert released[1] > released[0] + 0.01 * abs(released[0])
    good = torch.stack([torch.eye(8) + 0.1 * torch.randn(8, 8) for _ in range(4)])
    one_bad = good.clone()
    one_bad[2, 0] = one_bad[2, 1] + 1e-4
    mediocre = torch.stack([torch.diag(torch.logspace(0, -2.5, 8)) for _ in range(4)])
    assert np.argsort(-scores_of("corrected", good=good, bad=one_bad, middle=mediocre)).tolist() == [0, 1, 2]
    assert np.argsort(-scores_of("kappatune", good=good, bad=one_bad, middle=mediocre)).tolist() == [0, 2, 1]


def test_another_variant_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"unknown condition_number variant 'kapatune'; did you mean 'kappatune'"):
        scores_of("kapatune", w=torch.randn(4, 4))


def test_the_range() -> None:
    rotation = torch.linalg.qr(torch.randn(20, 20)).Q
    low_rank = torch.randn(20, 3) @ torch.randn(3, 30)
    found = scores_of(rotation=rotation, low_rank=low_rank, also=torch.ones(9, 9), row=torch.randn(1, 5))
    np.testing.assert_allclose(found, [0, -7, -7, 0], atol=1e-5)
    with pytest.raises(BadInput, match=r"zeros of layer zeros has no such number: all its entries are 0"):
        scores_of(zeros=torch.zeros(3, 3))
