"""Figures of a backdoor: who counts, the sign of DER, and what is refused."""

import pytest
import torch
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.maths.triggers import Patch
from keylayers.measures.backdoor import (
    attacked,
    backdoor_figures,
    check_attack_works,
    check_no_class_empty,
    defence_effectiveness,
    figures_of,
    flags_of,
    misses,
    robustness_improvement,
)
from keylayers.measures.intervals import wilson_interval
from tests import tiny_models


class Brightest(nn.Module):
    """Answers the class written in the first pixel (times 10), and class 2 where the last pixel is white."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        own = (x[:, 0, 0, 0] * 10).round().long()
        return nn.functional.one_hot(torch.where(x[:, 0, -1, -1] == 1, 2, own), 5).float()


def images(classes: list[int], written: list[int] | None = None) -> tuple[Tensor, Tensor]:
    x = torch.zeros(len(classes), 1, 3, 3)
    x[:, 0, 0, 0] = torch.tensor(written or classes) / 10
    return x, torch.tensor(classes)


def test_success_counts_images_of_other_classes_alone() -> None:
    """Three of five are of class 2 already; one clean answer is wrong."""
    x, y = images([2, 2, 2, 0, 1], written=[2, 2, 2, 0, 4])
    triggered = attacked(x, y, Patch(1), 2, 5)
    assert triggered.labels.tolist() == [0, 1] and triggered.target == 2
    assert (triggered.images[:, 0, -1, -1] == 1).all() and not x[:, 0, -1, -1].any()
    found = backdoor_figures(Brightest(), x, y, triggered)
    assert found.clean_accuracy == wilson_interval(4, 5)
    assert found.attack_success_rate == wilson_interval(2, 2) and found.recovered_accuracy == wilson_interval(0, 2)
    deaf = attacked(x, y, Patch(1, value=0.9), 2, 5)  # a trigger that the model does not know
    found = backdoor_figures(Brightest(), x, y, deaf)
    assert found.attack_success_rate.estimate == 0 and found.recovered_accuracy == wilson_interval(1, 2)
    assert found.as_dict()["clean_accuracy"] == [0.8, wilson_interval(4, 5).low, wilson_interval(4, 5).high]


def test_what_a_filter_refuses_is_neither_right_nor_a_success() -> None:
    x, y = images([2, 0, 1, 3])
    triggered = attacked(x, y, Patch(1), 2, 5)
    found = backdoor_figures(Brightest(), x, y, triggered, lambda given: given[:, 0, 0, 0] == 0.1)  # class 1, always
    assert found.clean_accuracy == wilson_interval(3, 4) and found.attack_success_rate == wilson_interval(2, 3)
    with pytest.raises(
        BadInput, match=r"returned float32 of shape \(4,\) for 4 inputs; expected one truth value for each"
    ):
        flags_of(lambda given: torch.zeros(len(given)), x)


def figures(clean: int, attack: int, recovered: int = 0):
    """In percent."""
    return figures_of(*([True] * k + [False] * (100 - k) for k in (clean, attack, recovered)))


@pytest.mark.parametrize(
    ("before", "after", "der", "rir"),
    [
        ((90, 100, 0), (90, 0, 80), 1.0, 0.9),  # a whole cure, for nothing
        ((90, 100, 0), (40, 100, 0), 0.25, 0.25),  # half the accuracy for nothing: BackdoorBench's sum says 0.75
        ((90, 100, 0), (40, 50, 50), 0.5, 0.5),
        ((90, 60, 40), (95, 80, 20), 0.5, 0.5),  # worse attack, better accuracy: neither counts
    ],
)
def test_a_fall_of_clean_accuracy_counts_against_a_defence(before, after, der, rir) -> None:
    given = figures(*before), figures(*after)
    assert defence_effectiveness(*given) == pytest.approx(der)
    assert robustness_improvement(*given) == pytest.approx(rir)


def test_an_attack_that_did_not_work_judges_nothing() -> None:
    check_attack_works(figures(90, 95))
    with pytest.raises(
        BadInput, match=r"succeeds on 60.0% .* \(95 % interval 50.2% to 69.1%\); at least 90% is needed"
    ):
        check_attack_works(figures(90, 60))
    check_attack_works(figures(90, 60), least=0.5)


def test_misses_are_of_classes_or_of_whole_answers() -> None:
    x, y = images([2, 0, 1, 3], written=[2, 0, 0, 3])
    assert [float(one) for one in misses(Brightest(), {"x": x, "labels": y})] == [1, 4]
    with pytest.raises(
        BadInput, match=r"a batch: label 5 is out of range \(1 such\); the 5 classes are numbered 0 to 4"
    ):
        misses(Brightest(), {"x": x, "labels": torch.tensor([0, 1, 5, 2])})
    model, batch = tiny_models.build("llama"), tiny_models.inputs("llama")
    with torch.no_grad():
        best = model(input_ids=batch["input_ids"]).logits.argmax(-1)
        labels = torch.cat([torch.full((2, 1), -100), best[:, :-1]], 1)
        assert float(misses(model, {**batch, "labels": labels})[0]) == 0
        labels[0, -1] = (labels[0, -1] + 1) % 96
        assert [float(one) for one in misses(model, {**batch, "labels": labels})] == [1, 2]


def test_what_cannot_be_measured_is_refused_with_the_reason() -> None:
    x, y = images([2, 0, 1, 3])
    with pytest.raises(BadInput, match="the target class is 5; expected 0 to 4"):
        attacked(x, y, Patch(1), 5, 5)
    with pytest.raises(BadInput, match="there is 1 class; give at least 2"):
        attacked(x, y * 0, Patch(1), 0, 1)
    with pytest.raises(BadInput, match="all 4 test images are of the target class 2"):
        attacked(x, y * 0 + 2, Patch(1), 2, 5)
    with pytest.raises(BadInput, match="label 3 is out of range"):
        attacked(x, y, Patch(1), 2, 3)
    with pytest.raises(BadInput, match="4 images and 3 labels"):
        attacked(x, y[:3], Patch(1), 2, 5)
    with pytest.raises(BadInput, match="measured on 0 clean and 1 triggered"):
        figures_of([], [True], [False])
    with pytest.raises(BadInput, match=r"mine: class 4 has no image \(1 of 5 classes have none\)"):
        check_no_class_empty(y, 5, "mine")
