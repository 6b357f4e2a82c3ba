"""RiFT: the largest share that keeps robustness, on a line written out by hand; both ends exact."""

import pytest
import torch
from torch import Tensor, nn

from keylayers.actions.robust_finetuning import RiftSettings, rift
from keylayers.errors import BadInput, KeylayersError
from keylayers.layers.naming import named_layers
from keylayers.maths.attacks import Ball
from keylayers.measures.attacks import Pgd
from keylayers.measures.robustness import clean_accuracy, robust_accuracy
from keylayers.scores.selection import Selection
from keylayers.training.images import ImageTraining
from tests.actions.test_harden import chosen, hashes, network, some


def training(epochs: int = 2, rate: float = 0.02) -> ImageTraining:
    return ImageTraining(epochs, batch_size=30, learning_rate=rate)


def test_only_the_selected_tensors_change_and_the_share_is_the_largest_that_keeps_robustness() -> None:
    model, held = network(), some("calibration")
    before, start = hashes(model), {name: one.clone() for name, one in model.state_dict().items()}
    given = RiftSettings(training(3, 0.05), Pgd(Ball(0.05), 3), points=6, tolerance=0.02)
    result = rift(model, chosen(model, "layer2.0.conv1"), *some(), given, calibration=held)
    assert result.shares == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0) and result.untouched == len(before) - 1
    least = result.robust[0].accuracy - 0.02
    assert result.share == max(a for a, one in zip(result.shares, result.robust, strict=True) if one.accuracy >= least)
    after = hashes(model)
    assert {name for name in before if before[name] != after[name]} <= {"layer2.0.conv1.weight"}

    # every point again, by hand: the whole way is another run with nothing to keep
    whole, far = network(), RiftSettings(given.training, given.attack, points=2, tolerance=1.0)
    assert rift(whole, chosen(whole, "layer2.0.conv1"), *some(), far, calibration=held).share == 1.0
    end, fresh = whole.layer2[0].conv1.weight.detach(), network()
    for share, clean, robust in zip(result.shares, result.clean, result.robust, strict=True):
        with torch.no_grad():
            fresh.layer2[0].conv1.weight.copy_((1 - share) * start["layer2.0.conv1.weight"] + share * end)
        assert clean.accuracy == clean_accuracy(fresh, *held).accuracy
        assert robust.accuracy == robust_accuracy(fresh, *held, given.attack).accuracy
        if share == result.share:
            torch.testing.assert_close(model.layer2[0].conv1.weight, fresh.layer2[0].conv1.weight)


class Threshold(nn.Module):
    """Class 1 where the mean pixel times a weight exceeds 0.5; training pushes the weight up."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1)
        self.dummy_inputs = {"x": torch.zeros(1, 1, 2, 2)}
        with torch.no_grad():
            self.scale.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        over = self.scale(x.mean((1, 2, 3))[:, None]) - 0.5
        return torch.cat([-over, over], 1)


def test_on_a_line_the_share_is_where_robustness_begins_to_fail() -> None:
    """Held images of class 0 with mean 0.4 and radius 0.02 stay right under attack while weight * 0.42 <= 0.5."""
    model = Threshold()
    x, y = torch.full((8, 1, 2, 2), 0.45), torch.ones(8, dtype=torch.long)
    held = torch.full((5, 1, 2, 2), 0.4), torch.zeros(5, dtype=torch.long)
    selection = Selection.of(named_layers(model, "linear"), names=["scale"])
    attack = Pgd(Ball(0.02), 4)
    full = rift(Threshold(), selection, x, y, RiftSettings(training(20, 0.1), attack, 2, 1.0), calibration=held)
    end = float(full.model.scale.weight.detach())
    assert end > 0.5 / 0.4  # far enough for all held images to fail
    limit = (0.5 / 0.42 - 1) / (end - 1)
    result = rift(model, selection, x, y, RiftSettings(training(20, 0.1), attack, 101), calibration=held)
    assert result.share == pytest.approx(int(100 * limit) / 100) and 0 < result.share < 1
    assert float(model.scale.weight.detach()) == pytest.approx(1 + result.share * (end - 1), rel=1e-6)
    assert float(full.model.scale.weight.detach()) == pytest.approx(end) and result.robust[0].accuracy == 1


def test_where_nothing_keeps_robustness_the_network_stays_bit_for_bit() -> None:
    model = Threshold()
    before = hashes(model)
    x, y = torch.full((8, 1, 2, 2), 0.45), torch.ones(8, dtype=torch.long)
    held = torch.full((5, 1, 2, 2), 0.4), torch.zeros(5, dtype=torch.long)
    selection = Selection.of(named_layers(model, "linear"), names=["scale"])
    result = rift(model, selection, x, y, RiftSettings(training(20, 1.0), Pgd(Ball(0.02), 4), 2), calibration=held)
    assert result.share == 0.0 and hashes(model) == before and result.robust[1].accuracy == 0


def test_statistics_of_a_selected_block_go_the_same_way_and_errors_leave_the_network_as_it_was() -> None:
    model, held = network(), some("calibration", 30)
    selection = chosen(model, "layer2.0", granularity="block")
    before = hashes(model)
    result = rift(model, selection, *some(), RiftSettings(training(), Pgd(Ball(0.05), 2), 3, 1.0), calibration=held)
    moved = {name for name in before if before[name] != hashes(model)[name]}
    assert result.share == 1.0 and moved == {name for name in before if name.startswith("layer2.0.")}

    model = network()
    before = hashes(model)
    with pytest.raises(BadInput, match="label 10 is out of range"):
        rift(model, selection, *some(), RiftSettings(training(), points=3), calibration=(held[0], held[1] * 0 + 10))
    assert hashes(model) == before
    with pytest.raises(BadInput, match=r"expected \[0, 1\]"):
        rift(model, selection, *some(), calibration=(held[0] * 3, held[1]))

    def meddle(module: nn.Module, args: object) -> None:
        if module.training:
            with torch.no_grad():
                model.linear.bias += 1

    model.register_forward_pre_hook(meddle)
    with pytest.raises(KeylayersError, match=r"outside the selection, first linear\.bias"):
        rift(model, selection, *some(), RiftSettings(training(1)), calibration=held)
