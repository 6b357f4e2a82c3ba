"""Robust capacity: the closed form of a linear loss in the weights, a planted layer, and the ball it stays in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keylayers.criteria.protocol import Evidence
from keylayers.criteria.robust_capacity import RobustCapacity, score_robust_capacity
from keylayers.errors import BadInput
from keylayers.layers.naming import named_layers
from keylayers.measures.objective import image_loss
from keylayers.models.digits import digits_resnet
from tests.layers.helpers import full_state, same_state


class Sum(nn.Module):
    """Two maps of the pixels that add, the second's inputs scaled."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(12, 3), nn.Linear(12, 3, bias=False)
        self.scale = scale
        self.dummy_inputs = {"x": torch.zeros(1, 1, 3, 4)}

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x.flatten(1)) + self.two(self.scale * x.flatten(1))


def images(sizes: tuple[int, ...], shape: tuple[int, ...] = (1, 3, 4)) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        {"x": 0.3 + 0.4 * torch.rand(size, *shape, generator=generator), "labels": torch.arange(size) % 3}
        for size in sizes
    ]


def linear_loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    """Linear in the logits, so that its rise in a ball of weights is radius |slope|."""
    logits = model(batch["x"]).double()
    return -logits.gather(1, batch["labels"][:, None]).sum(), len(logits)


@pytest.mark.parametrize("radius", [0.1, 0.4])
def test_of_a_linear_loss_it_is_the_radius_times_the_norm_of_the_slope(radius) -> None:
    """Slope of map w: -sum over images of onehot(y) x^T, the second's times its scale, over the number of images."""
    model, data = Sum(5.0).double(), [{**b, "x": b["x"].double()} for b in images((7, 5))]
    evidence = Evidence(model=model, data=data, loss=linear_loss)
    layers = named_layers(model, "linear")
    scores = score_robust_capacity(evidence, layers, RobustCapacity(radius=radius, attack_steps=0, eps=0.0))
    x, y = (torch.cat([batch[key] for batch in data]) for key in ("x", "labels"))
    model.requires_grad_(False)
    slope = torch.nn.functional.one_hot(y, 3).double().T @ x.flatten(1) / len(x)
    truth = [
        radius * scale * float(slope.norm()) * float(one.weight.norm())
        for scale, one in ((1, model.one), (5, model.two))
    ]
    np.testing.assert_allclose(scores.values, truth, rtol=1e-9)
    weighed = (scores.repeats * np.array([[7], [5]])).sum(0) / 12
    np.testing.assert_allclose(weighed, truth, rtol=1e-9)


def test_the_loss_is_that_of_attacked_images() -> None:
    """On a linear loss the attack moves each pixel by eps against its own class, all maps' slopes with it."""
    model, data = Sum(1.0).double(), [{**b, "x": b["x"].double()} for b in images((6,))]
    evidence, eps = Evidence(model=model, data=data, loss=linear_loss), 0.1
    layers = named_layers(model, "linear")
    scores = score_robust_capacity(evidence, layers, RobustCapacity(radius=0.2, eps=eps))
    model.requires_grad_(False)
    x, y = data[0]["x"], data[0]["labels"]
    weight = model.one.weight + model.two.weight
    attacked = x.flatten(1) - eps * weight[y].sign()
    slope = torch.nn.functional.one_hot(y, 3).double().T @ attacked / len(x)
    truth = [0.2 * float(slope.norm() * one.weight.norm()) for one in (model.one, model.two)]
    np.testing.assert_allclose(scores.values, truth, rtol=1e-9)


def test_weights_are_never_written_and_the_planted_layer_ranks_first() -> None:
    torch.manual_seed(1)
    model = digits_resnet().eval()
    with torch.no_grad():
        model.layer2[1].bn2.weight.mul_(20)  # what conv2 makes is blown up, so small changes of it count
    evidence = Evidence(model=model, data=images((6, 4), (1, 8, 8)), loss=image_loss)
    layers = [layer for layer in named_layers(model, "conv") if layer.block in (2, 3)]
    model.train()
    before = full_state(model)
    scores = score_robust_capacity(evidence, layers, RobustCapacity(steps=4, attack_steps=2))
    assert same_state(before, full_state(model))
    assert scores.ranking()[0].name == "layer2.1.conv2" and (scores.values >= 0).all()
    wider = score_robust_capacity(evidence, layers, RobustCapacity(steps=4, attack_steps=2, radius=0.2))
    assert wider.values.sum() > scores.values.sum()


def test_blocks_move_their_kernels_together_and_layers_without_any_are_refused() -> None:
    torch.manual_seed(1)
    model = digits_resnet().eval()
    evidence = Evidence(model=model, data=images((4, 4), (1, 8, 8)), loss=image_loss)
    settings = RobustCapacity(steps=2, attack_steps=1)
    blocks = named_layers(model, "block")[2:4]
    assert np.isfinite(score_robust_capacity(evidence, blocks, settings).values).all()
    norm = replace(blocks[0], name="layer2.0.bn1", parameters=("layer2.0.bn1.weight", "layer2.0.bn1.bias"))
    with pytest.raises(BadInput, match=r"moves matrices and kernels, but layer layer2\.0\.bn1 has none"):
        score_robust_capacity(evidence, [norm], settings)
