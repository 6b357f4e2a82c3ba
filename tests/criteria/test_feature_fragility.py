"""Feature fragility: closed forms of linear chains, a planted amplifier, and what its settings mean."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keylayers.criteria.feature_fragility import FeatureFragility, score_feature_fragility
from keylayers.criteria.protocol import Evidence
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.naming import named_layers
from keylayers.measures.objective import image_loss
from keylayers.models.digits import digits_resnet
from tests import tiny_models
from tests.criteria.examples import batches_of


class Chain(nn.Module):
    """Linear maps one after another on the pixels; factors and widths as given."""

    def __init__(self, factors: tuple[float, ...], widths: tuple[int, ...], pixels: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = nn.ModuleList()
        for factor, width in zip(factors, widths, strict=True):
            one = nn.Linear(pixels, width, bias=False)
            with torch.no_grad():  # rows repeat: the output has factor^2 width / pixels times the input's squared norm
                one.weight.copy_(factor * torch.eye(pixels).repeat(math.ceil(width / pixels), 1)[:width])
            self.maps.append(one)
            pixels = width
        self.head = nn.Linear(pixels, 3)
        self.dummy_inputs = {"x": torch.zeros(1, 1, 4, 4)}

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.flatten(1)
        for one in self.maps:
            hidden = one(hidden)
        return self.head(hidden)


def evidence_for(model: nn.Module, sizes: tuple[int, ...] = (6, 4), shape: tuple[int, ...] = (1, 4, 4)) -> Evidence:
    generator = torch.Generator().manual_seed(5)
    data = [
        {"x": 0.3 + 0.4 * torch.rand(size, *shape, generator=generator), "labels": torch.arange(size) % 3}
        for size in sizes
    ]
    return Evidence(model=model, data=data, loss=image_loss)


FACTORS, WIDTHS = (1.0, 3.0, 0.5, 1.0), (16, 16, 32, 32)


@pytest.mark.parametrize(
    ("settings", "ratios"),
    [
        (FeatureFragility(), [1, 3, 0.5 * math.sqrt(2) / 2, 1]),
        (FeatureFragility(normalise="none"), [1, 3, 0.5 * math.sqrt(2), 1]),
        (FeatureFragility(normalise="none", norm_power=2), [1, 9, 0.5, 1]),
        (FeatureFragility(norm_power=2), [1, 9, 0.25, 1]),
        (FeatureFragility(normalise="relative"), [1, 1, 1, 1]),
        (FeatureFragility(before="input"), [1, 3, 0.5 * math.sqrt(2) / 2, 1]),
        (FeatureFragility(steps=0), [1, 3, 0.5 * math.sqrt(2) / 2, 1]),
    ],
)
def test_of_maps_that_stretch_all_ways_alike_it_is_the_factor_whatever_the_attack(settings, ratios) -> None:
    model = Chain(FACTORS, WIDTHS)
    layers = named_layers(model, "linear")
    assert [layer.name for layer in layers] == ["maps.0", "maps.1", "maps.2", "maps.3", "head"]
    scores = score_feature_fragility(evidence_for(model), layers, settings)
    np.testing.assert_allclose(scores.values[:4], ratios, rtol=1e-5)
    np.testing.assert_allclose(scores.repeats[:, :4], [ratios] * 2, rtol=1e-5)
    assert scores.values[:4].argmax() == 1 or settings.normalise == "relative"


def test_it_is_the_formula_written_out_with_the_attack_by_hand() -> None:
    model = Chain((1.0, 2.0), (16, 16))
    with torch.no_grad():
        model.maps[1].weight.copy_(torch.randn(16, 16))
    evidence, settings = evidence_for(model), FeatureFragility(eps=0.05, steps=40)
    scores = score_feature_fragility(evidence, named_layers(model, "linear"), settings)
    weak = np.zeros(4)
    for batch in evidence.data:
        x, y = batch["x"], batch["labels"]
        z = x.clone().requires_grad_()
        nn.functional.cross_entropy(model(z), y, reduction="sum").backward()
        moved = x + 0.05 * z.grad.sign()  # the logits are linear in x; all pixels are far from 0 and 1
        for _ in range(8):  # the sign may turn on the way, as the softmax does
            z = moved.clone().requires_grad_()
            nn.functional.cross_entropy(model(z), y, reduction="sum").backward()
            moved = x + 0.05 * z.grad.sign()
        model.zero_grad()
        with torch.no_grad():
            a, b = x.flatten(1), moved.flatten(1)
            for place, layer in enumerate([lambda h: h, model.maps[0], model.maps[1], model.head]):
                a, b = layer(a), layer(b)
                weak[place] += float((b - a).norm(dim=1).sum()) / a.shape[1]
    np.testing.assert_allclose(scores.values, weak[1:] / weak[:-1], rtol=1e-4)
    np.testing.assert_allclose(scores.provenance.settings["weakness"], weak[1:] / 10, rtol=1e-4)


@pytest.mark.parametrize("granularity", ["conv", "block"])
def test_a_planted_amplifier_ranks_first_in_a_network_of_convolutions(granularity) -> None:
    torch.manual_seed(0)
    model = digits_resnet().eval()
    layers = named_layers(model, granularity)
    with torch.no_grad():
        model.layer2[1].conv2.weight.mul_(30)
    scores = score_feature_fragility(evidence_for(model, (5, 5, 5), (1, 8, 8)), layers)
    assert scores.ranking()[0].name == {"conv": "layer2.1.conv2", "block": "layer2.1"}[granularity]
    assert scores.repeats.shape == (3, len(layers)) and (scores.values > 0).all()


def test_layers_that_do_not_move_score_zero_and_are_passed_over() -> None:
    """A dead layer beside the stream: what follows is compared with the last layer that moved."""

    class Beside(Chain):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.maps[0](x.flatten(1))
            dead = self.maps[1](torch.zeros_like(hidden))
            return self.head(self.maps[2](hidden) + dead)

    model = Beside((2.0, 1.0, 3.0), (16, 16, 16))
    for settings in (FeatureFragility(), FeatureFragility(before="input"), FeatureFragility(normalise="relative")):
        scores = score_feature_fragility(evidence_for(model), named_layers(model, "linear"), settings)
        expected = [1, 0, 1] if settings.normalise == "relative" else [2, 0, 3]
        np.testing.assert_allclose(scores.values[:3], expected, rtol=1e-5)


def test_batches_and_their_order_change_nothing_but_the_intervals() -> None:
    model = Chain(FACTORS, WIDTHS)
    with torch.no_grad():
        model.maps[1].weight.add_(torch.randn(16, 16))
    evidence, layers = evidence_for(model), named_layers(model, "linear")
    values = score_feature_fragility(evidence, layers).values
    reverse = score_feature_fragility(replace(evidence, data=evidence.data[::-1]), layers).values
    np.testing.assert_allclose(values, reverse, rtol=1e-9)
    one = score_feature_fragility(replace(evidence, data=evidence.data[:1]), layers)
    assert one.repeats is None


def test_what_is_no_image_or_cannot_move_is_refused() -> None:
    model = Chain(FACTORS, WIDTHS)
    evidence, layers = evidence_for(model), named_layers(model, "linear")
    batch = evidence.data[0]
    text = Evidence(model=tiny_models.build("llama"), data=batches_of("llama"))
    with pytest.raises(BadInput, match=r"criterion 'feature_fragility' takes images, .*but the data holds input_ids"):
        score_feature_fragility(text, named_layers(text.model, "linear"))
    with pytest.raises(BadInput, match=r"expected \[0, 1\]"):
        score_feature_fragility(replace(evidence, data=[{**batch, "x": batch["x"] * 4 - 2}]), layers)
    with pytest.raises(BadInput, match="expected a number above 0"):
        FeatureFragility(eps=0.0)
    with pytest.raises(BadInput, match="norm_power=3"):
        FeatureFragility(norm_power=3)
    with pytest.raises(UnknownName, match="'relativ'; did you mean 'relative'"):
        FeatureFragility(normalise="relativ")
    with pytest.raises(UnknownName, match="before 'inputs'; did you mean 'input'"):
        FeatureFragility(before="inputs")
    model.unused = nn.Linear(3, 3)
    with pytest.raises(BadInput, match="layer unused never ran"):
        score_feature_fragility(evidence, named_layers(model, "linear"))
