"""Hardening: one step in closed form, only what is selected changes, the features are stilled, layers chosen anew."""

import hashlib
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from keylayers.actions.hardening import BETAS, LOSSES, Hardened, HardenSettings, harden
from keylayers.data.images import load_images, part_images
from keylayers.errors import BadInput, BadSelection, Diverged, KeylayersError, UnknownName
from keylayers.layers.naming import named_layers
from keylayers.maths.attacks import Ball
from keylayers.measures.attacks import FeatureAttack, Pgd, features_moved
from keylayers.measures.robustness import clean_accuracy, robust_accuracy
from keylayers.models.digits import DigitsResNet
from keylayers.runs import Checkpoint
from keylayers.scores.selection import Selection
from keylayers.training.images import ImageTraining, train_images
from tests.layers.helpers import full_state

QUICK = Pgd(Ball(0.1), 2)


@cache
def parts():
    sizes = {"train": 300, "reference": 20, "calibration": 60, "test": 60}
    return part_images(load_images("bundled:digits"), sizes, seed=2)


@cache
def state() -> dict[str, Tensor]:
    """Of a small network that knows the digits."""
    torch.manual_seed(0)
    model = DigitsResNet(1, (6, 8, 12))
    train_images(model, *parts().train.tensors(), ImageTraining(epochs=8, batch_size=50))
    return {name: value.clone() for name, value in model.state_dict().items()}


def network() -> DigitsResNet:
    model = DigitsResNet(1, (6, 8, 12))
    model.load_state_dict(state())
    return model.eval()


def some(part: str = "train", count: int = 60) -> tuple[Tensor, Tensor]:
    x, y = getattr(parts(), part).tensors()
    return x[:count], y[:count]


def chosen(model: nn.Module, *names: str, granularity: str = "conv") -> Selection:
    return Selection.of(named_layers(model, granularity), names=names)


def hashes(model: nn.Module) -> dict[str, str]:
    return {name: hashlib.sha256(value.numpy().tobytes()).hexdigest() for name, value in model.state_dict().items()}


def changed(before: dict[str, str], model: nn.Module) -> set[str]:
    after = hashes(model)
    return {name for name in before if before[name] != after[name]}


def settings(epochs: int = 1, **more) -> HardenSettings:
    given = {"attack": QUICK, "training": ImageTraining(epochs, batch_size=30, learning_rate=0.02), **more}
    return HardenSettings(**given)


def test_one_step_on_a_linear_network_is_the_gradient_at_the_exact_optimum() -> None:
    """Two maps that add; one is selected. The lambda term's worst perturbation of a linear map of one output is
    eps sign(w) (or its negative), with square (eps |w|_1)^2 and slope 2 eps^2 |w|_1 sign(w).
    """

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two = nn.Linear(6, 1, bias=False), nn.Linear(6, 1, bias=False)
            self.dummy_inputs = {"x": torch.zeros(1, 1, 2, 3)}

        def forward(self, x: Tensor) -> Tensor:
            margin = self.one(x.flatten(1)) + self.two(x.flatten(1))
            return torch.cat([margin, -margin], 1)

    x = 0.4 + 0.2 * torch.rand(8, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    y, eps, rate, weight = torch.tensor([0, 1] * 4), 0.05, 0.1, 3.0
    for lam, fast in ((0.0, False), (weight, False), (weight, True)):
        model = Two()
        w, whole = model.one.weight.detach()[0].clone(), (model.one.weight + model.two.weight).detach()[0]
        side = (1 - 2 * y).float()[:, None]
        attacked = x.flatten(1) - eps * side * whole.sign()
        margin = side[:, 0] * (attacked @ whole)  # half the difference of the logits
        slope = (-2 * torch.sigmoid(-2 * margin)[:, None] * side * attacked).mean(0)
        if lam and not fast:
            slope = slope + lam * 2 * eps**2 * w.abs().sum() * w.sign()
        if lam and fast:
            moved = attacked - x.flatten(1)
            slope = slope + lam * (2 * (moved @ w)[:, None] * moved).mean(0)
        training = ImageTraining(1, batch_size=8, learning_rate=rate, weight_decay=0.0)
        given = HardenSettings(attack=Pgd(Ball(eps), 30), feature_weight=lam, fast=fast, training=training)
        other = model.two.weight.detach().clone()
        result = harden(model, chosen(model, "one", granularity="linear"), x, y, given)
        torch.testing.assert_close(model.one.weight.detach()[0], w - rate * 1.9 * slope, rtol=1e-4, atol=1e-6)
        assert torch.equal(model.two.weight, other) and result.untouched == 1 and not model.training


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("fast", [False, True])
def test_only_the_selected_tensors_change_and_no_running_statistic_beside_them(loss, fast) -> None:
    model = network()
    model.layer1.train()
    model.conv1.weight.requires_grad_(False)
    flags = [one.requires_grad for one in model.parameters()]
    before, random = hashes(model), torch.get_rng_state()
    result = harden(model, chosen(model, "layer2.0.conv1"), *some(), settings(loss=loss, fast=fast))
    assert changed(before, model) == {"layer2.0.conv1.weight"}
    assert result.untouched == len(before) - 1 and len(result.losses) == 1
    assert [one.requires_grad for one in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), random) and not full_state(model)["hooks"]["layer2.0.conv1"][0]
    assert all(one.grad is None for one in model.parameters())


def test_a_selected_block_moves_its_own_statistics_and_no_other_block_its() -> None:
    model = network()
    before = hashes(model)
    result = harden(model, chosen(model, "layer2.0", granularity="block"), *some(), settings(feature_weight=0.5))
    inside = {name for name in before if name.startswith("layer2.0.")}
    assert changed(before, model) == inside and any("running_mean" in name for name in inside)
    assert result.untouched == len(before) - len(inside)


def weakness(model: nn.Module, layer: str, x: Tensor, y: Tensor) -> float:
    attack = FeatureAttack((layer,), Pgd(Ball(0.1), 10))
    with torch.no_grad():
        return float(features_moved(model, (layer,), x)(attack(model, x, y)).mean())


def test_the_term_stills_the_features_of_images_it_has_not_seen_and_robustness_does_not_fall() -> None:
    x, y = some("test", 60)
    model = network()
    before = weakness(model, "layer2.0.conv2", x, y), robust_accuracy(model, x, y, QUICK).accuracy
    found = {}
    for weight in (0.0, 30.0):
        model = network()
        training = ImageTraining(3, batch_size=50, learning_rate=0.02)
        given = HardenSettings(attack=Pgd(Ball(0.1), 3), feature_weight=weight, training=training)
        harden(model, chosen(model, "layer2.0.conv2"), *some("train", 200), given)
        found[weight] = weakness(model, "layer2.0.conv2", x, y)
    assert found[30.0] < 0.6 * before[0] and found[30.0] < 0.8 * found[0.0]
    assert robust_accuracy(model, x, y, QUICK).accuracy > before[1] - 2 * (0.25 / 60) ** 0.5
    assert clean_accuracy(model, x, y).accuracy > 0.7


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_features_differ_by_the_images_alone_and_not_by_dropout(loss, fast) -> None:
    """Under an attack of no size the term is 0, whatever dropout does to each pass."""

    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.drop, self.map, self.head = nn.Dropout(0.5), nn.Linear(64, 30), nn.Linear(30, 10)
            self.dummy_inputs = {"x": torch.zeros(1, 1, 8, 8)}

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.map(self.drop(x.flatten(1)))))

    once = {"attack": Pgd(Ball(1e-9), 1), "training": ImageTraining(1, batch_size=60), "loss": loss, "fast": fast}
    losses = []
    for weight in (1e3, 0.0):
        model = Dropping()
        given = settings(feature_weight=weight, **once)
        losses += harden(model, chosen(model, "map", granularity="linear"), *some(), given).losses
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_layers_are_chosen_anew_at_the_interval_and_each_trains_in_its_turn_alone() -> None:
    model, asked, prints = network(), [], [hashes(network())]
    turns = ["layer2.0.conv1", "layer3.0.conv2", "layer1.0.conv1"]

    def reselect(given: nn.Module) -> Selection:
        assert given is model
        asked.append(len(prints) - 1)
        return chosen(model, turns[len(asked)])

    def watch(given: nn.Module) -> float:
        prints.append(hashes(given))
        return 0.0

    result = harden(model, chosen(model, turns[0]), *some(), settings(5, every=2), reselect=reselect, watch=watch)
    assert asked == [2, 4] and [epoch for epoch, _ in result.selections] == [0, 2, 4]
    assert [one.names for _, one in result.selections] == [(name,) for name in turns]
    for epoch, (before, after) in enumerate(pairwise(prints)):
        assert {name for name in before if before[name] != after[name]} == {f"{turns[epoch // 2]}.weight"}
    assert result.untouched == len(prints[0]) - 3 and len(result.losses) == 5
    assert changed(prints[-1], model) == set()


def test_the_best_epoch_is_kept_and_can_be_put_back() -> None:
    model, values, told = network(), iter([0.2, 0.7, 0.7, 0.1]), []
    states = []

    def watch(given: nn.Module) -> float:
        states.append(hashes(given))
        return next(values)

    report = lambda done, total, loss: told.append((done, total, round(loss, 6)))  # noqa: E731
    result = harden(model, chosen(model, "layer2.0.conv1"), *some(), settings(4), watch=watch, report=report)
    assert isinstance(result, Hardened) and result.watched == (0.2, 0.7, 0.7, 0.1) and result.best_epoch == 1
    assert told == [(index + 1, 4, round(loss, 6)) for index, loss in enumerate(result.losses)]
    assert hashes(model) == states[3] != states[1]
    model.load_state_dict(result.best)
    assert hashes(model) == states[1]
    plain = harden(network(), chosen(model, "layer2.0.conv1"), *some(), settings(1))
    assert plain.best is None and plain.best_epoch is None and plain.watched == ()


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_hardening_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, stop: int) -> None:
    """After any epoch, that of a new choice and the last one included: weights, choices, losses, what was watched."""
    turns = [("conv1",), ("layer2.0.conv1",), ("layer3.0.conv2",)]

    def hardened(keeps=None, until: int = 9) -> tuple[Hardened, nn.Module]:
        model, seen = network(), []

        def again(one: nn.Module) -> Selection:
            return chosen(
                one, *turns[int(float(one.conv1.weight.detach().sum()) * 1e6) % 3]
            )  # by what the weights have become

        def watch(one: nn.Module) -> float:
            seen.append(1)
            if len(seen) > until:
                raise KeyboardInterrupt
            return float(one.conv1.weight.detach().sum())

        given = settings(4, every=2)
        made = harden(model, chosen(model, "conv1"), *some(), given, reselect=again, watch=watch, keeps=keeps)
        return made, model

    whole, model = hardened()
    keeps = Checkpoint(tmp_path)
    if stop < 4:
        with pytest.raises(KeyboardInterrupt):
            hardened(keeps, until=stop)
    else:
        hardened(keeps)
    resumed, again = hardened(keeps)
    assert full_state(model).keys() == full_state(again).keys() and hashes(model) == hashes(again)
    assert resumed.losses == whole.losses and resumed.watched == whole.watched and resumed.untouched == whole.untouched
    names = [[(epoch, one.names) for epoch, one in made.selections] for made in (whole, resumed)]
    assert names[0] == names[1] and len(names[0]) == 2
    assert whole.best is not None and resumed.best is not None
    assert all(torch.equal(value, resumed.best[name]) for name, value in whole.best.items())


def test_a_fast_step_takes_half_the_gradients_of_a_standard_one() -> None:
    counts = {}
    for fast in (False, True):
        model, calls = network(), []
        selection = chosen(model, "layer2.0.conv1")
        model.conv1.register_forward_hook(lambda module, args, out, calls=calls: calls.append(torch.is_grad_enabled()))
        harden(model, selection, *some(), settings(fast=fast))
        counts[fast] = len(calls)
    # two batches: an attack of 2 steps, x' and x; else the features at x, 2 steps on them, and x'' beside
    assert counts == {True: 2 * (2 + 2), False: 2 * (2 + 2 + 1 + 2 + 1)}


def test_what_changes_behind_its_back_is_noticed() -> None:
    model = network()

    def meddling(given: nn.Module) -> float:
        with torch.no_grad():
            model.linear.bias += 1
        return 0.0

    with pytest.raises(KeylayersError, match=r"1 tensors outside the selection, first linear\.bias"):
        harden(model, chosen(model, "layer2.0.conv1"), *some(), settings(), watch=meddling)
    assert all(one.requires_grad for one in model.parameters())


def test_what_cannot_be_trained_is_refused_and_flags_come_back() -> None:
    model, (x, y) = network(), some()
    selection = chosen(model, "layer2.0.conv1")
    with pytest.raises(UnknownName, match="'trade'; did you mean 'trades'"):
        settings(loss="trade")
    with pytest.raises(BadInput, match="every=0"):
        settings(every=0)
    with pytest.raises(BadInput, match="one restart, got 2"):
        settings(attack=Pgd(restarts=2))
    with pytest.raises(BadInput, match=r"expected \[0, 1\]"):
        harden(model, selection, 2 * x, y, settings())
    with pytest.raises(BadInput, match="60 images and 59 labels"):
        harden(model, selection, x, y[:-1], settings())
    other = Selection.of(named_layers(DigitsResNet(3), "conv"), names=["layer2.2.conv1"])
    with pytest.raises(BadSelection, match="not in this model"):
        harden(model, other, x, y, settings())
    wild = ImageTraining(3, batch_size=30, learning_rate=1e30)
    with pytest.raises(Diverged, match="the loss is"):
        harden(model, selection, x, y, settings(training=wild))
    assert all(one.requires_grad for one in model.parameters())
    assert BETAS == {"pgd-at": 0.0, "trades": 6.0, "mart": 5.0}
    assert np.isfinite(harden(network(), selection, x, y, settings(loss="trades", beta=1.0)).losses).all()
