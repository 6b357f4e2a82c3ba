"""Robust accuracy: closed forms on linear networks, sanity flags on planted maskings, torchattacks behind one call."""

import builtins
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keylayers.data.images import load_images, part_images
from keylayers.errors import BadInput, UnknownName
from keylayers.maths.attacks import Ball
from keylayers.measures.attacks import FeatureAttack, Pgd, feature_distance, features_moved, image_key
from keylayers.measures.masking import sanity
from keylayers.measures.peer_attacks import INSTALL, PeerAttack
from keylayers.measures.robustness import Outcomes, clean_accuracy, robust_accuracy, worst_case
from keylayers.models.digits import DigitsResNet
from keylayers.training.images import ImageTraining, train_images
from tests.layers.helpers import full_state, same_state
from tests.tiny_models import build

BALL = Ball(0.1)


@cache
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that knows the digits, and 60 it has not seen."""
    sizes = {"train": 500, "reference": 1, "calibration": 1, "test": 60}
    parts = part_images(load_images("bundled:digits"), sizes, seed=1)
    torch.manual_seed(0)
    model = DigitsResNet(1, (6, 8, 12))
    train_images(model, *parts.train.tensors(), ImageTraining(epochs=4, batch_size=50))
    return model, *parts.test.tensors()


class Wrapped(nn.Module):
    """A network with something before and after it."""

    def __init__(self, model: nn.Module, levels: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        self.model, self.levels, self.scale = model, levels, scale

    def forward(self, x: Tensor) -> Tensor:
        if self.levels:
            x = (x * self.levels).round() / self.levels
        return self.model(x) * self.scale


def linear(classes: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, classes))


def middling(samples: int = 200) -> Tensor:
    return 0.4 + 0.2 * torch.rand(samples, 1, 3, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_linear_network_is_robust_exactly_where_its_margin_exceeds_eps_times_the_dual_norm(norm) -> None:
    model, x = linear(), middling()
    with torch.no_grad():
        weight = model[1].weight[0] - model[1].weight[1]
        model[1].bias[0] -= (x.flatten(1) @ weight).mean() + model[1].bias[0] - model[1].bias[1]
        margin = model(x)[:, 0] - model(x)[:, 1]
    y, ball = (margin < 0).long(), Ball(0.01 if norm == "linf" else 0.03, norm)
    y[:20] = 1 - y[:20]  # wrong from the beginning
    certain = margin.abs() > ball.eps * weight.norm(p=1 if norm == "linf" else 2)
    certain[:20] = False
    found = robust_accuracy(model, x, y, Pgd(ball, steps=20, random_start=False), batch_size=64)
    assert clean_accuracy(model, x, y).correct.tolist() == [False] * 20 + [True] * 180
    assert np.array_equal(found.correct, certain.numpy()) and 0.02 < found.accuracy < 0.8
    assert found.accuracy in found.interval() and found.under == "pgd-20"
    assert found.interval().high - found.interval().low < 0.15


def test_attacks_leave_the_network_as_it_was_and_stay_in_the_ball() -> None:
    model, x, y = trained()
    model.train()
    model.layer1.eval()
    model.linear.bias.requires_grad_(False)
    model.linear.weight.grad = torch.ones_like(model.linear.weight)
    before = full_state(model)
    for attack in (
        Pgd(BALL, 2, restarts=2),
        FeatureAttack(("layer2.0",), Pgd(BALL, 2)),
        PeerAttack("square", BALL, queries=5),
    ):
        attacked = attack(model, x, y)
        assert float((attacked - x).abs().max()) <= BALL.eps + 1e-6 and not torch.equal(attacked, x)
        robust_accuracy(model, x, y, attack)
        assert same_state(before, full_state(model)), attack.name
    model.linear.bias.requires_grad_(True)
    model.linear.weight.grad = None
    model.eval()


def test_an_attack_on_features_moves_them_more_than_one_on_the_loss() -> None:
    model, x, y = trained()
    moved, objective = {}, features_moved(model, ["layer2.0"], x)
    for attack in (Pgd(BALL, 10), FeatureAttack(("layer2.0",), Pgd(BALL, 10))):
        attacked = attack(model, x, y)
        with torch.no_grad():
            moved[attack.name] = float(objective(attacked).mean())
    assert moved["features-pgd-10 of 1 layers"] > 1.1 * moved["pgd-10"] > 0
    assert not objective(x).any()


def test_a_feature_distance_is_the_mean_square_summed_over_layers() -> None:
    one = {"a": torch.zeros(2, 3, 2, 2), "b": torch.ones(2, 5)}
    other = {"a": torch.full((2, 3, 2, 2), 2.0), "b": torch.tensor([[1.0] * 5, [2.0] * 5])}
    assert feature_distance(one, other).tolist() == [4.0, 5.0]


def test_the_worst_case_is_image_by_image() -> None:
    a, b = (
        Outcomes(name, np.array(right))
        for name, right in (("a", [True, True, False, True]), ("b", [True, False, True, True]))
    )
    both = worst_case(a, b)
    assert both.correct.tolist() == [True, False, False, True] and both.accuracy == 0.5 and both.under == "a and b"
    assert worst_case(a) is a
    with pytest.raises(BadInput, match="on 4 images and c on 2"):
        worst_case(a, Outcomes("c", np.array([True, True])))
    with pytest.raises(BadInput, match="no attack"):
        worst_case()


def test_an_honest_network_raises_no_flag() -> None:
    model, x, y = trained()
    found = sanity(model, x, y, Pgd(BALL, 20), black_box=PeerAttack("square", BALL, queries=100))
    assert found.raised == {} and str(found) == "no sign of a failed attack"
    assert found.zero_gradients == 0 and found.everything.accuracy == 0
    assert found.white_box.accuracy < found.black_box.accuracy
    assert len(found.path) == 21 and float(found.path[-1]) > 2 * float(found.path[0])


@pytest.mark.parametrize(
    ("masking", "flags"),
    [
        ({"levels": 6}, {"zero gradient", "black box stronger", "large radius", "loss over steps"}),
        ({"scale": 1e4}, {"zero gradient"}),  # the softmax saturates: the loss of a sure answer is 0, its slope, too
    ],
    ids=["quantised", "saturated"],
)
def test_masked_gradients_raise_the_flags(masking, flags) -> None:
    model, x, y = trained()
    masked = Wrapped(model, **masking)
    found = sanity(masked, x, y, Pgd(BALL, 10), black_box=PeerAttack("square", BALL, queries=100))
    assert flags <= found.raised.keys(), found
    assert all(sentence.endswith(".") or sentence.endswith("?") for sentence in found.raised.values())


def test_a_test_that_is_set_up_wrongly_raises_the_flags() -> None:
    model, x, y = trained()
    model.layer2.train()
    found = sanity(model, x / 255, y, Pgd(BALL, 5))
    assert {"eval mode", "input range"} <= found.raised.keys() and found.black_box is None
    assert model.layer2.training
    model.eval()
    for path, falls in (
        ([1.0, 3.0, 2.0], True),
        ([1.0, 3.0, 2.99], False),
        ([1.0, 1.0, 1.0], True),
        ([1.0, 2.0, 3.0], False),
    ):
        again = replace(found, path=torch.tensor(path))
        assert ("loss over steps" in again.raised) == falls, path
    with pytest.raises(BadInput, match=r"reach from .* to 255"):
        sanity(model, x * 255, y)


@pytest.mark.parametrize(("kind", "most"), [("apgd-ce", 0.6), ("apgd-t", 0.6), ("autoattack", 0.6), ("square", 0.9)])
def test_the_attacks_of_torchattacks_run_and_are_no_weaker_than_one_step(kind, most) -> None:
    model, x, y = trained()
    attack, before = PeerAttack(kind, BALL, steps=5, queries=40), torch.get_rng_state()
    found = robust_accuracy(model, x[:20], y[:20], attack)
    assert torch.equal(before, torch.get_rng_state()) and found.under == kind
    assert found.accuracy <= most
    again = robust_accuracy(model, x[:20], y[:20], attack)
    assert np.array_equal(found.correct, again.correct)
    if kind == "autoattack":
        parts = [
            robust_accuracy(model, x[:20], y[:20], PeerAttack(one, BALL, steps=5, queries=40))
            for one in ("apgd-ce", "apgd-t")
        ]
        assert found.accuracy <= worst_case(*parts).accuracy


def test_our_own_ascent_is_as_strong_as_the_library_of_equal_cost() -> None:
    """The same 60 images, 20 gradients each: robust accuracies within a tenth (a standard error is 0.06)."""
    model, x, y = trained()
    ball = Ball(0.06)
    ours, theirs = (
        robust_accuracy(model, x, y, a).accuracy for a in (Pgd(ball, 20), PeerAttack("apgd-ce", ball, steps=20))
    )
    assert 0.05 < theirs < 0.95 and abs(ours - theirs) < 0.1


def test_a_missing_library_is_named_with_the_command_that_installs_it(monkeypatch) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name == "torchattacks":
            raise ImportError("No module named 'torchattacks'")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "torchattacks", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadInput, match=INSTALL):
        PeerAttack("apgd-ce")(linear(), middling(2), torch.zeros(2, dtype=torch.long))
    assert INSTALL == "pip install --no-deps torchattacks==3.5.1"


def test_what_an_attack_cannot_use_is_refused() -> None:
    model, x, y = trained()
    with pytest.raises(UnknownName, match="'apgd'; did you mean 'apgd-"):
        PeerAttack("apgd")(model, x, y)
    for kind in ("apgd-t", "autoattack"):
        with pytest.raises(BadInput, match=rf"attack {kind} needs at least 4 classes, the network has 3; use apgd-ce"):
            PeerAttack(kind)(linear(3), middling(2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(BadInput, match=r"label 10 is out of range \(1 such\): the network knows classes 0 to 9"):
        robust_accuracy(model, x, torch.cat([y[:-1], torch.tensor([10])]), Pgd(BALL))
    with pytest.raises(BadInput, match="2 images, 3 labels"):
        clean_accuracy(model, x[:2], y[:3])
    with pytest.raises(BadInput, match="0 images"):
        clean_accuracy(model, x[:0], y[:0])
    with pytest.raises(BadInput, match=r"images have shape \(60, 2, 8, 8\); expected \(batch, 1"):
        robust_accuracy(model, x.repeat(1, 2, 1, 1), y, Pgd(BALL))
    with pytest.raises(UnknownName, match=r"unknown layer 'layer2\.00'; did you mean 'layer2\.0"):
        FeatureAttack(("layer2.00",))(model, x, y)
    with pytest.raises(BadInput, match="no layer; name at least one"):
        FeatureAttack(())(model, x, y)
    with pytest.raises(BadInput, match=r"it takes images, one tensor .* holds input_ids, labels; give"):
        image_key({"input_ids": torch.ones(2, 3), "labels": y}, "it")

    class Straying(Pgd):
        def __call__(self, model, x, y):
            return (x + 0.2).clamp(0, 1)

    with pytest.raises(BadInput, match=r"attack pgd-10 moved an image by 0\.2.*; allowed are 0\.1"):
        robust_accuracy(model, x, y, Straying(BALL))


def test_networks_of_hugging_face_are_attacked_as_they_are() -> None:
    model = build("vit")
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).logits.argmax(1)
    for attack in (Pgd(Ball(0.3), 10), PeerAttack("apgd-ce", Ball(0.3), steps=10)):
        assert clean_accuracy(model, x, y).accuracy == 1 > robust_accuracy(model, x, y, attack).accuracy
