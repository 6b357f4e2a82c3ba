import numpy as np
import pytest
import torch
from torch import nn

from keylayers.criteria.delta_norm import DeltaNorm, score_delta_norm
from keylayers.criteria.protocol import Evidence
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.deltas import Deltas, deltas_from_checkpoints
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.structure import tensors_of
from tests import tiny_models
from tests.criteria.examples import evidence_of, perturbed


def numpy_norms(model: nn.Module, layers: tuple[Layer, ...], tuned: nn.Module | None = None) -> np.ndarray:
    """Norms of the layers' parameters, or of their differences, by numpy on the models' own tensors."""

    def part(source: nn.Module, name: str) -> np.ndarray:
        whole, bracket, index = name.partition("[")
        array = tensors_of(source)[whole].detach().double().numpy()
        return array[int(index[:-1])] if bracket else array

    def norm(layer: Layer) -> float:
        arrays = [part(tuned, n) - part(model, n) if tuned is not None else part(model, n) for n in layer.parameters]
        return float(np.sqrt(sum(np.square(array).sum() for array in arrays)))

    return np.array([norm(layer) for layer in layers])


@pytest.mark.parametrize(("name", "granularity"), [("gpt2", "linear"), ("llama", "block"), ("olmoe", "expert")])
def test_equals_numpy(name: str, granularity: str) -> None:
    model = tiny_models.build(name)
    tuned = perturbed(model)
    layers = named_layers(model, granularity)
    evidence = Evidence(model=model, deltas=deltas_from_checkpoints(model, tuned, layers), granularity=granularity)
    changed, base = numpy_norms(model, layers, tuned), numpy_norms(model, layers)
    sizes = np.array([layer.size for layer in layers])
    expected = {"none": changed, "weight": changed / base, "size": changed / np.sqrt(sizes)}
    for relative, values in expected.items():
        scores = score_delta_norm(evidence, layers, DeltaNorm(relative=relative))
        np.testing.assert_allclose(scores.values, values, rtol=1e-5)


def test_low_rank_norms_equal_those_of_the_product() -> None:
    evidence = evidence_of("gpt2")
    layers = evidence.deltas.layers
    products = [
        [delta.scaling * delta.up.double().numpy() @ delta.down.double().numpy() for delta in changes.values()]
        for changes in evidence.deltas.changes
    ]
    expected = [np.sqrt(sum(np.square(product).sum() for product in one)) for one in products]
    np.testing.assert_allclose(score_delta_norm(evidence, layers).values, expected, rtol=1e-6)


def test_what_did_not_change_has_norm_zero() -> None:
    evidence = evidence_of("llama")
    deltas = Deltas(evidence.deltas.layers, ({}, *evidence.deltas.changes[1:]))
    scores = score_delta_norm(Evidence(model=evidence.model, deltas=deltas), deltas.layers)
    assert scores.values[0] == 0 and (scores.values[1:] > 0).all()


def test_another_way_of_being_relative_is_refused() -> None:
    evidence = evidence_of("llama")
    with pytest.raises(UnknownName, match=r"unknown delta_norm relative 'weigth'; did you mean 'weight'\?"):
        score_delta_norm(evidence, evidence.deltas.layers, DeltaNorm(relative="weigth"))


def test_quantised_weights_have_no_norm_to_divide_by() -> None:
    evidence = evidence_of("llama")
    layers = evidence.deltas.layers
    head = evidence.model.lm_head
    head.weight = nn.Parameter(torch.zeros(head.weight.numel() // 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(BadInput, match=r"lm_head\.weight is stored quantised"):
        score_delta_norm(evidence, layers, DeltaNorm(relative="weight"))
    assert np.isfinite(score_delta_norm(evidence, layers, DeltaNorm(relative="size")).values).all()
