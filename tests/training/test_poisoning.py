"""Poisoned training images: which are changed, and how; attacks that need a benign model or a trained generator."""

import pytest
import torch
from torch import nn

from keylayers.data.images import load_images, part_images
from keylayers.errors import BadInput
from keylayers.maths.attacks import Ball
from keylayers.maths.triggers import Blend, Patch
from keylayers.measures.backdoor import attacked, backdoor_figures, predicted_classes
from keylayers.models.digits import DigitsResNet
from keylayers.training.images import ImageTraining
from keylayers.training.input_aware import Generator, InputAware, InputAwareAttack, sameness, train_input_aware
from keylayers.training.label_consistent import LabelConsistent, poison_consistently
from keylayers.training.poisoning import Poisoning, poisoned
from tests.layers.helpers import full_state, same_state

CLASSES = 4


def images(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.9, torch.arange(count) % CLASSES


@pytest.mark.parametrize("relabel", [True, False])
def test_a_share_of_what_may_be_poisoned_is_and_nothing_else(relabel: bool) -> None:
    (x, y), trigger = images(), Blend()
    found = poisoned(x, y, Poisoning(trigger, 2, 0.3, relabel, seed=1), CLASSES)
    places = torch.tensor(found.places)
    assert len(places) == (9 if relabel else 3)  # 0.3 of 30 images, of 10
    assert ((y[places] != 2) if relabel else (y[places] == 2)).all()
    assert torch.equal(found.images[places], trigger(x[places]))
    rest = torch.tensor(sorted(set(range(40)) - set(found.places)))
    assert torch.equal(found.images[rest], x[rest]) and torch.equal(found.labels[rest], y[rest])
    assert (found.labels[places] == 2).all()
    assert torch.equal(images()[0], x) and torch.equal(images()[1], y)  # what was given is as it was


def test_the_seed_alone_decides_which() -> None:
    (x, y), state = images(), torch.get_rng_state()
    one, same, other = (poisoned(x, y, Poisoning(Patch(2), 0, seed=seed), CLASSES).places for seed in (1, 1, 2))
    assert one == same != other and list(one) == sorted(set(one))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "classes", "message"),
    [
        ({}, 1, "a backdoor needs a target and another class, but there is 1 class"),
        ({"target": 4}, 4, "the target class is 4; expected 0 to 3, one of the 4 classes"),
        ({"target": -1}, 4, "the target class is -1"),
        ({"share": 0.01}, 4, r"a share of 0.01 of the 30 images of another class than class 2 is 0 images"),
        ({"share": 1.5}, 4, r"expected a share in \(0, 1\]"),
        ({"share": float("nan")}, 4, r"expected a share in \(0, 1\]"),
        ({"target": 4, "relabel": False}, 5, "no training image is of the target class 4, so .* give images of it"),
        ({}, 3, r"the training images: label 3 is out of range \(10 such\)"),
    ],
)
def test_what_cannot_be_poisoned_is_refused_with_the_reason(change: dict, classes: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        poisoned(*images(), Poisoning(**{"trigger": Patch(2), "target": 2 if classes > 1 else 0, **change}), classes)


def test_all_of_the_target_leaves_nothing_to_relabel() -> None:
    x, y = images()
    with pytest.raises(BadInput, match="no training image is of another class than the target class 2"):
        poisoned(x, torch.full_like(y, 2), Poisoning(Patch(2), 2), CLASSES)


class Linear(nn.Module):
    """Two classes by a linear map: the loss of class 0 rises most straight along w1 - w0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.map = nn.Linear(64, 2)
        self.unfrozen = nn.Dropout(0.5)

    def forward(self, x):
        return self.map(self.unfrozen(x.flatten(1)))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_consistent_images_are_the_optimum_against_a_linear_model_with_the_trigger_on_top(norm: str) -> None:
    (x, y), benign, eps = images(), Linear().train(), 0.1 if norm == "linf" else 0.8
    y = y % 2
    how = LabelConsistent(Patch(2), 0, 0.5, eps=eps, norm=norm, steps=60, step=eps / 5)
    before = full_state(benign)
    found = poison_consistently(x, y, benign, how, 2)
    assert same_state(before, full_state(benign))
    places = torch.tensor(found.places)
    assert len(places) == 10 and (y[places] == 0).all() and torch.equal(found.labels, y)
    slope = (benign.map.weight[1] - benign.map.weight[0]).detach().view(1, 1, 8, 8).expand(10, -1, -1, -1)
    best = Patch(2)(Ball(eps, norm).optimum(slope, x[places]))
    assert torch.allclose(found.images[places], best, atol=1e-5 if norm == "linf" else 1e-3)
    rest = torch.tensor(sorted(set(range(40)) - set(found.places)))
    assert torch.equal(found.images[rest], x[rest])
    with pytest.raises(BadInput, match="no training image is of the target class 0"):
        poison_consistently(x, y * 0 + 1, benign, how, 2)


def test_a_mask_covers_its_share_and_patterns_are_mixed_by_it() -> None:
    torch.manual_seed(0)
    x, generator = images()[0], Generator(1, 0.25)
    generator(x)  # running statistics of its own
    pattern, mask = generator.eval()(x)
    assert ((mask > 0.5).flatten(1).float().mean(1) == 0.25).all()
    trigger, before = InputAware(generator.train()), full_state(generator)
    assert torch.allclose(trigger(x), (1 - mask) * x + mask * pattern, atol=1e-6)
    assert torch.allclose(trigger.crossed(x, x.flip(0)), (1 - mask.flip(0)) * x + (mask * pattern).flip(0), atol=1e-6)
    assert same_state(before, full_state(generator))


def test_diversity_is_of_distances() -> None:
    x = torch.tensor([0.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    assert float(sameness(x, x / 6)) == pytest.approx(6 / (1 + 1e-3))


def test_an_input_aware_trigger_works_on_its_own_image_and_not_on_others() -> None:
    parts = part_images(
        load_images("bundled:digits"), {"train": 1000, "reference": 1, "calibration": 1, "test": 400}, seed=0
    )
    (x, y), (xt, yt) = parts.train.tensors(), parts.test.tensors()
    torch.manual_seed(0)
    model, state = DigitsResNet(1, (8, 16, 16)), torch.get_rng_state()
    trigger = train_input_aware(model, x, y, InputAwareAttack(1, 0.2, 0.2, training=ImageTraining(epochs=10)), 10)
    assert torch.equal(state, torch.get_rng_state())
    found = backdoor_figures(model, xt, yt, attacked(xt, yt, trigger, 1, 10))
    assert found.clean_accuracy.estimate > 0.9 and found.attack_success_rate.estimate > 0.75
    crossed = predicted_classes(model, trigger.crossed(xt, xt.roll(1, 0)))[yt != 1]
    assert float((crossed == 1).float().mean()) < 0.3


@pytest.mark.parametrize(
    "wrong", [{"share": 0.001}, {"cross": 0.0}, {"share": 0.6, "cross": 0.4}, {"density": 1.0}, {"target": 10}]
)
def test_an_input_aware_attack_without_room_is_refused(wrong: dict) -> None:
    with pytest.raises(BadInput, match=r"one left clean, and a density|the target class is 10"):
        train_input_aware(DigitsResNet(1, (4, 4, 4)), *images(), InputAwareAttack(**{"target": 1, **wrong}), 10)
