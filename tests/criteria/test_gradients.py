"""Gradient criteria against autograd on a copy, finite differences, and noise of known size."""

import copy
import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from keylayers import criteria
from keylayers.criteria.gradient_norm import GradientNorm, score_gradient_norm
from keylayers.criteria.gradient_signal_noise import GradientSignalNoise, score_gradient_signal_noise
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.relative_gradient import RelativeGradient, score_relative_gradient
from keylayers.criteria.support.gradients import run_batches
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.measures.objective import image_loss, language_loss
from tests import tiny_models
from tests.criteria.examples import batches_of, quadratic_evidence, squared_loss
from tests.layers.helpers import full_state, same_state

CASES = [(name, "block") for name in ("llama", "gpt2", "t5", "olmoe", "cifar-resnet", "vit")]
CASES += [
    ("llama-tied", "linear"),
    ("gpt-oss", "expert"),
    ("mixtral", "router"),
    ("hf-resnet", "conv"),
    ("bert", "sublayer"),
]


def evidence_for(name: str, granularity: str) -> Evidence:
    loss = image_loss if name in tiny_models.VISION else language_loss
    return Evidence(model=tiny_models.build(name), data=batches_of(name), granularity=granularity, loss=loss)


def gradients_by_hand(evidence: Evidence, layers) -> tuple[np.ndarray, np.ndarray]:
    """Flat gradients of the summed loss of each batch, per layer in an object array; tokens."""
    model = copy.deepcopy(evidence.model)
    rows, tokens = [], []
    for batch in evidence.data:
        model.zero_grad()
        loss, count = evidence.loss(model, batch)
        loss.backward()
        tokens.append(count)
        named = dict(model.named_parameters(remove_duplicate=False))
        rows.append([])
        for layer in layers:
            parts = []
            for name in layer.parameters:
                whole, bracket, index = name.partition("[")
                gradient = named[whole].grad
                gradient = torch.zeros_like(named[whole]) if gradient is None else gradient
                parts.append((gradient[int(index[:-1])] if bracket else gradient).double().flatten())
            rows[-1].append(torch.cat(parts).numpy())
    return rows, np.array(tokens, dtype=float)


@pytest.mark.parametrize(("name", "granularity"), CASES)
def test_norms_are_autograds(name: str, granularity: str) -> None:
    evidence = evidence_for(name, granularity)
    layers = named_layers(evidence.model, granularity, tied=name == "llama-tied", example=tiny_models.inputs(name))
    before = full_state(evidence.model)
    plain = score_gradient_norm(evidence, layers, GradientNorm("plain"))
    relative = score_relative_gradient(evidence, layers, RelativeGradient("batches"))
    unbiased = score_gradient_norm(evidence, layers)
    assert same_state(before, full_state(evidence.model))
    rows, tokens = gradients_by_hand(evidence, layers)
    own = dict(evidence.model.named_parameters(remove_duplicate=False))
    for place, layer in enumerate(layers):
        one, other = (row[place] for row in rows)
        assert plain.values[place] == pytest.approx(np.linalg.norm(one + other) / tokens.sum(), rel=1e-4)
        weights = [own[n.partition("[")[0]].detach().double() for n in layer.parameters]
        weights = [
            w[int(n.partition("[")[2][:-1])] if "[" in n else w for w, n in zip(weights, layer.parameters, strict=True)
        ]
        size = np.sqrt(sum(float(w.square().sum()) for w in weights))
        each = (np.linalg.norm(one) / tokens[0] + np.linalg.norm(other) / tokens[1]) / 2
        assert relative.values[place] == pytest.approx(each / size, rel=1e-4)
        inner = float((one / tokens[0]) @ (other / tokens[1]))  # two batches: the unbiased square is their product
        scale = np.linalg.norm(one) * np.linalg.norm(other) / tokens.prod()
        assert np.sign(unbiased.values[place]) * unbiased.values[place] ** 2 == pytest.approx(inner, abs=1e-4 * scale)
    assert relative.repeats.shape == (2, len(layers)) and unbiased.repeats is None


def test_norms_are_slopes_of_the_loss() -> None:
    """Finite differences along the gradient and across it."""
    evidence = quadratic_evidence()
    layers = evidence.deltas.layers
    norms = score_gradient_norm(evidence, layers, GradientNorm("plain")).values
    rows, tokens = gradients_by_hand(evidence, layers)

    def loss_at(place: int, direction: np.ndarray, step: float) -> float:
        model = copy.deepcopy(evidence.model)
        at = 0
        with torch.no_grad():
            for name in layers[place].parameters:
                parameter = model.get_parameter(name)
                parameter += step * torch.from_numpy(direction[at : at + parameter.numel()]).view_as(parameter)
                at += parameter.numel()
            return sum(float(evidence.loss(model, batch)[0]) for batch in evidence.data) / tokens.sum()

    for place in range(3):
        along = sum(row[place] for row in rows)
        along = along / np.linalg.norm(along)
        slope = (loss_at(place, along, 1e-5) - loss_at(place, along, -1e-5)) / 2e-5
        assert slope == pytest.approx(norms[place], rel=1e-6)


class Noisy(nn.Module):
    """Two layers, one ten times as wide; y = W x is met exactly at 0, so gradients are what the labels' noise gives."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(4, 3, bias=False), nn.Linear(400, 3, bias=False)

    def forward(self, x):
        return self.small(x[:, :4]) + self.large(x)


def noise(signal: float, batches: int, seed: int) -> Evidence:
    """Labels of pure noise but for a signal in the first four inputs."""
    torch.manual_seed(0)
    model, generator = Noisy().double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    data = []
    for _ in range(batches):
        x = torch.randn(6, 400, generator=generator, dtype=torch.float64)
        y = torch.randn(6, 3, generator=generator, dtype=torch.float64) + signal * x[:, :3]
        data.append({"x": x, "y": y})
    return Evidence(model=model, data=data, loss=squared_loss)


def test_on_pure_noise_the_unbiased_estimates_are_about_zero_and_the_plain_ones_follow_size() -> None:
    found: dict[str, list[np.ndarray]] = {}
    for seed in range(12):
        evidence = noise(0.0, 8, seed)
        layers = named_layers(evidence.model, "linear")
        for how in ("unbiased", "plain"):
            norms = score_gradient_norm(evidence, layers, GradientNorm(how)).values
            found.setdefault(f"norm {how}", []).append(np.sign(norms) * norms**2)
            ratio = score_gradient_signal_noise(evidence, layers, GradientSignalNoise(how)).values
            found.setdefault(f"ratio {how}", []).append(ratio)
    mean = {name: np.mean(rows, axis=0) for name, rows in found.items()}
    assert mean["norm plain"][1] > 50 * mean["norm plain"][0] > 0
    assert (np.abs(mean["norm unbiased"]) < 0.1 * mean["norm plain"]).all()
    assert (mean["ratio plain"] > 1 / 8).all()
    np.testing.assert_allclose(mean["ratio plain"][1], 7 / 5 / 8, rtol=0.1)  # nearly normal: (n - 1) / (n - 3) / n
    assert (np.abs(mean["ratio unbiased"]) < 0.03).all()


def test_where_there_is_signal_the_layer_that_has_it_ranks_first() -> None:
    evidence = noise(0.7, 8, 0)
    layers = named_layers(evidence.model, "linear")
    assert score_gradient_norm(evidence, layers, GradientNorm("plain")).order()[0] == 1  # deceived by size
    assert score_gradient_signal_noise(evidence, layers).order()[0] == 0


def test_signal_over_noise_by_hand() -> None:
    evidence = noise(0.5, 5, 3)
    layers = named_layers(evidence.model, "linear")
    rows, tokens = gradients_by_hand(evidence, layers)
    unbiased = score_gradient_signal_noise(evidence, layers).values
    plain, released = (
        score_gradient_signal_noise(evidence, layers, GradientSignalNoise(how)).values for how in ("plain", "released")
    )
    for place in range(2):
        each = np.stack([row[place] / count for row, count in zip(rows, tokens, strict=True)])
        mean, variance = each.mean(0), each.var(0, ddof=1)
        assert unbiased[place] == pytest.approx((mean**2 - variance / 5).sum() / variance.sum(), rel=1e-9)
        assert plain[place] == pytest.approx((mean**2 / variance).mean(), rel=1e-9)
        matrices = each.reshape(5, 3, -1)
        rule = matrices**2 / (matrices.var(1, ddof=1, keepdims=True) + 1e-8)
        assert released[place] == pytest.approx(rule.mean(), rel=1e-9) and released[place] != pytest.approx(
            plain[place]
        )


def test_an_expert_that_some_batches_do_not_reach_has_gradients_of_zero_there() -> None:
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

        def forward(self, x):
            return self.a(x) + (self.b(x) if x[0, 0] > 0 else 0)

    torch.manual_seed(0)
    data = [
        {"x": torch.randn(3, 2, dtype=torch.float64), "y": torch.randn(3, 2, dtype=torch.float64)} for _ in range(6)
    ]
    for index, batch in enumerate(data):
        batch["x"][0, 0] = 1.0 if index % 2 else -1.0
    evidence = Evidence(model=Switched().double(), data=data, loss=squared_loss)
    layers = named_layers(evidence.model, "linear")
    rows, tokens = gradients_by_hand(evidence, layers)
    each = np.stack([row[1] / count for row, count in zip(rows, tokens, strict=True)])
    expected = (each.mean(0) ** 2 - each.var(0, ddof=1) / 6).sum() / each.var(0, ddof=1).sum()
    assert score_gradient_signal_noise(evidence, layers).values[1] == pytest.approx(expected, rel=1e-9)


def test_gradients_are_freed_as_they_come() -> None:
    evidence = evidence_for("llama", "block")
    layers, alive, seen = named_layers(evidence.model, "block"), [], []

    def take(batch, count, place, name, gradient) -> None:
        gc.collect(0)
        seen.append((batch, name))
        assert sum(one() is not None for one in alive) == 0  # those before are gone
        alive.append(weakref.ref(gradient))

    run_batches(evidence, layers, "it", take)
    assert len(seen) == len(set(seen)) == 2 * sum(len(layer.parameters) for layer in layers)


def test_what_cannot_be_estimated_is_refused() -> None:
    evidence = quadratic_evidence()
    one, layers = replace(evidence, data=evidence.data[:1]), evidence.deltas.layers
    for found in (score_gradient_norm, score_relative_gradient, score_gradient_signal_noise):
        with pytest.raises(BadInput, match=rf"{found.name} .*there is 1; give more"):
            found(one, layers)
        with pytest.raises(UnknownName, match="did you mean 'plain'"):
            found(evidence, layers, found.settings(estimate="plane"))
    assert np.isfinite(score_gradient_norm(one, layers, GradientNorm("plain")).values).all()
    twice = [layers[0], Layer("again", None, "again", layers[0].parameters, layers[0].size)]
    with pytest.raises(BadInput, match=r"'first' and 'again' share first\.weight"):
        criteria.get("gradient_norm")(evidence, twice)
