"""The empirical Fisher information against a loop over examples, and against its closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from keylayers.criteria.fisher import Fisher, score_fisher
from keylayers.criteria.gradient_norm import GradientNorm, score_gradient_norm
from keylayers.criteria.protocol import Evidence
from keylayers.layers.example_gradients import thin_modules
from keylayers.layers.naming import named_layers
from tests.criteria.examples import granularity_of, layers_of
from tests.criteria.test_gradients import evidence_for, gradients_by_hand
from tests.layers.helpers import full_state, same_state


def in_double(evidence: Evidence, name: str) -> Evidence:
    evidence.model.double()
    if hasattr(evidence.model, "set_experts_implementation"):
        evidence.model.set_experts_implementation("eager")
    data = [
        {key: one.double() if one.is_floating_point() else one for key, one in batch.items()} for batch in evidence.data
    ]
    return replace(evidence, data=data)


@pytest.mark.parametrize(
    "name", ["llama", "llama-tied", "gpt2", "phi3", "olmoe", "deepseek-v3", "t5", "bert", "vit", "cifar-resnet"]
)
def test_one_backward_pass_gives_what_a_loop_over_examples_gives(name: str) -> None:
    evidence = in_double(evidence_for(name, granularity_of(name)), name)
    layers = layers_of(name, evidence.model)
    before = full_state(evidence.model)
    fast, slow = score_fisher(evidence, layers), score_fisher(evidence, layers, Fisher(loop=True))
    assert same_state(before, full_state(evidence.model))
    np.testing.assert_allclose(fast.values, slow.values, rtol=1e-7)
    np.testing.assert_allclose(fast.repeats, slow.repeats, rtol=1e-7)
    assert fast.values.max() > 0
    if name in ("llama", "gpt2", "phi3", "vit"):
        assert len(thin_modules(evidence.model, layers)) == len(layers)  # none of them was looped over


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_it_is_the_mean_square_of_examples_and_not_that_of_a_batch(granularity: str) -> None:
    evidence = evidence_for("llama", granularity)
    layers = named_layers(evidence.model, granularity)
    singles = [
        {key: value[row : row + 1] for key, value in batch.items()}
        for batch in evidence.data
        for row in range(len(batch["labels"]))
    ]
    rows, _ = gradients_by_hand(replace(evidence, data=singles), layers)
    expected = np.array([np.mean([row[place] @ row[place] for row in rows]) for place in range(len(layers))])
    found = score_fisher(evidence, layers).values
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    other = score_fisher(replace(evidence, data=singles), layers).values
    np.testing.assert_allclose(found, other, rtol=1e-4)  # however they are batched
    batched, _ = gradients_by_hand(evidence, layers)
    of_batches = [np.sum([row[place] @ row[place] for row in batched]) / 5 for place in range(len(layers))]
    assert not np.allclose(of_batches, expected, rtol=0.05)
    norms = score_gradient_norm(evidence, layers, GradientNorm("plain")).values
    assert not np.allclose(norms**2, expected, rtol=0.05)


@pytest.mark.parametrize("length", [3, 40])  # through inner products of places, and through the gradient itself
def test_a_logistic_model_has_the_information_written_in_books(length: int) -> None:
    """p(1 | x) = s(sum_t w x_t): the gradient is (s - y) sum_t x_t."""

    class Logistic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(5, 1)

        def forward(self, x):
            return self.score(x).sum((1, 2))

    def loss(model, batch):
        logits = model(batch["x"])
        return nn.functional.binary_cross_entropy_with_logits(logits, batch["y"], reduction="sum"), len(logits)

    torch.manual_seed(1)
    model = Logistic().double()
    x = torch.randn(9, length, 5, dtype=torch.float64) / length
    y = (torch.arange(9) % 2).double()
    data = [{"x": x[:4], "y": y[:4]}, {"x": x[4:], "y": y[4:]}]
    layers = named_layers(model, "linear")
    found = score_fisher(Evidence(model=model, data=data, loss=loss), layers)
    off = (torch.sigmoid(model(x)) - y).detach()
    expected = (off**2 * (x.sum(1).square().sum(1) + length**2)).mean()
    assert found.values[0] == pytest.approx(float(expected), rel=1e-9)


def test_one_backward_pass_a_batch_for_linear_layers() -> None:
    evidence, calls = evidence_for("llama", "linear"), []
    layers = named_layers(evidence.model, "linear")

    def counting(model, batch):
        calls.append(len(batch["labels"]))
        return tiny_models_loss(model, batch)

    tiny_models_loss = evidence.loss
    score_fisher(replace(evidence, loss=counting), layers)
    assert calls == [2, 3]


def test_a_linear_map_that_is_called_twice_is_looped_over() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(torch.tanh(self.first(torch.tanh(self.first(x)))))

    def loss(model, batch):
        return (model(batch["x"]) - batch["y"]).square().sum(), len(batch["x"])

    torch.manual_seed(0)
    data = [{"x": torch.randn(n, 4).double(), "y": torch.randn(n, 2).double()} for n in (3, 4)]
    evidence = Evidence(model=Twice().double(), data=data, loss=loss)
    layers = named_layers(evidence.model, "linear")
    fast, slow = (score_fisher(evidence, layers, Fisher(loop=loop)).values for loop in (False, True))
    np.testing.assert_allclose(fast, slow, rtol=1e-9)
