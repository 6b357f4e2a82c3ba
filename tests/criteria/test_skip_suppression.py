"""Skip suppression: planted shortcuts whose scores are known in closed form, and every curve against plain forwards."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from keylayers.criteria.protocol import Evidence
from keylayers.criteria.skip_suppression import SkipSuppression, score_skip_suppression, steepest
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.naming import named_layers
from keylayers.layers.skips import scaled_skips
from keylayers.models.digits import DigitsResNet
from keylayers.scores import select
from tests import tiny_models
from tests.criteria.examples import batches_of
from tests.criteria.planted_skips import Relay, evidence, triggered

OWN = SkipSuppression("own-trigger")


@pytest.mark.parametrize("block", range(3))
def test_the_skip_that_carries_the_backdoor_is_found_and_its_score_is_the_formulas(block: int) -> None:
    """Half of the images give way between 1 and 0.9, the rest between 0.2 and 0.1."""
    given = evidence(Relay(trigger=block, score=None), triggered([0.95, 0.95]), triggered([0.15, 0.15]))
    layers = named_layers(given.model, "skip")
    scores = score_skip_suppression(given, layers, OWN)
    expected = np.zeros(3)
    expected[block] = max(0.5 / math.exp(0.5), 0.5 / math.exp(0.0))
    np.testing.assert_allclose(scores.values, expected)
    curve = scores.provenance.settings["curves"][layers[block].name]
    assert curve == [1.0, *[0.5] * 8, 0.0, 0.0]
    assert select(scores, "top:1").names == (layers[block].name,)


def test_success_is_a_fraction_and_a_fall_that_ends_low_counts_more() -> None:
    falls = np.array([[1.0, 0.5, 0.5, 0.0], [1.0, 0.45, 0.45, 0.0], [0.6, 0.7, 0.8, 0.9]])
    wanted = [0.5, max(0.55 / math.exp(0.45), 0.45), -0.1 / math.exp(0.9)]
    np.testing.assert_allclose(steepest(falls), wanted)


def test_a_skip_is_compared_with_the_whole_model_and_not_with_the_skip_before() -> None:
    """Turning down skip 0, which alone carries the clean score, raises success from 1/2 to 1; the released code then
    takes skip 1's start at 1/2 for a fall."""
    given = evidence(Relay(trigger=None, score=0), triggered([0.5, 1.5]))
    layers = named_layers(given.model, "skip")
    scores = score_skip_suppression(given, layers, OWN)
    assert scores.provenance.settings["curves"][layers[0].name][-1] == 1.0
    assert scores.values[1] == scores.values[2] == 0.0 and scores.values[0] == 0.0


def test_a_network_that_says_nothing_of_its_inputs_is_followed_on_the_datas() -> None:
    class Silent(Relay):
        dummy_inputs = None  # type: ignore[assignment]

    given = evidence(Silent(trigger=1, score=None), triggered([0.45, 0.45]))
    layers = named_layers(given.model, "skip", example={"x": given.data[0]["x"]})
    np.testing.assert_allclose(score_skip_suppression(given, layers, OWN).values, [0, 1, 0])


def plain_curve(model: nn.Module, layer, given: Evidence) -> list[float]:
    """By whole forward passes."""
    curve = []
    for step in range(11):
        right, count = 0, 0
        with torch.no_grad(), scaled_skips(model, [layer], 1 - step / 10):
            for batch in given.data:
                out = model(**{key: value for key, value in batch.items() if key != "labels"})
                logits = out if isinstance(out, torch.Tensor) else out.logits
                right += int((logits.argmax(-1) == batch["labels"]).sum())
                count += len(logits)
        curve.append(right / count)
    return curve


@pytest.mark.parametrize("name", ["digits", "hf-resnet", "vit"])
def test_curves_are_those_of_plain_forwards(name: str) -> None:
    torch.manual_seed(0)
    if name == "digits":
        model, data = DigitsResNet(1, (4, 6, 8)).eval(), []
        for rows in (30, 20):
            x = torch.rand(rows, 1, 8, 8)
            data.append({"x": x, "labels": model(x).argmax(1)})
    else:
        model, data = tiny_models.build(name), batches_of(name, batch=12)
        with torch.no_grad():
            data = [{**batch, "labels": model(pixel_values=batch["pixel_values"]).logits.argmax(1)} for batch in data]
    given = Evidence(model=model, data=data, granularity="skip")
    layers = named_layers(model, "skip")
    scores = score_skip_suppression(given, layers)
    for layer in layers:
        plain = plain_curve(model, layer, given)
        assert scores.provenance.settings["curves"][layer.name] == pytest.approx(plain, abs=1e-6), layer.name
        assert plain[0] == 1.0


def test_the_likelihood_of_text_is_its_loss() -> None:
    model, data = tiny_models.build("llama"), batches_of("llama")
    given = Evidence(model=model, data=data, granularity="skip")
    layers = named_layers(model, "skip")[:2]
    scores = score_skip_suppression(given, layers, SkipSuppression(success="likelihood"))
    with torch.no_grad(), scaled_skips(model, layers[:1], 0.3):
        pairs = [given.loss(model, batch) for batch in data]
    mean = sum(float(loss) for loss, _ in pairs) / sum(count for _, count in pairs)
    assert scores.provenance.settings["curves"][layers[0].name][7] == pytest.approx(math.exp(-mean), abs=1e-6)


def test_the_attackers_trigger_is_stamped_and_no_other() -> None:
    given = evidence(Relay(trigger=1, score=None), triggered([0.45]))
    layers = named_layers(given.model, "skip")
    for name, stamp in (("oracle", True), ("own-trigger", False), ("clean-only", False)):
        noted = score_skip_suppression(given, layers, SkipSuppression(name)).provenance.settings
        assert noted["oracle"] is stamp and noted["calibration"] == name
    assert score_skip_suppression(given, layers).provenance.settings["calibration"] == "clean-only"


class Straight(nn.Module):
    """No skip."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))

    @property
    def dummy_inputs(self) -> dict[str, torch.Tensor]:
        return {"x": torch.zeros(1, 4)}

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_what_cannot_be_scored_is_refused_with_the_reason() -> None:
    weak = evidence(Relay(trigger=1, score=None), triggered([2.0, 2.0, 0.5]))
    layers = named_layers(weak.model, "skip")
    with pytest.raises(BadInput, match=r"own-trigger succeeds with 33.3% in the whole model; at least 50% is needed"):
        score_skip_suppression(weak, layers, OWN)
    score_skip_suppression(weak, layers)  # clean data are as they are
    with pytest.raises(
        BadInput, match=r"a batch: label 2 is out of range \(1 such\); the 2 classes are numbered 0 to 1"
    ):
        score_skip_suppression(evidence(weak.model, triggered([0.5], target=2)), layers)
    with pytest.raises(UnknownName, match="unknown skip_suppression calibration 'own_trigger'; did you mean"):
        score_skip_suppression(weak, layers, SkipSuppression("own_trigger"))  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match=r"unknown skip 'blocks\.0\.up'"):
        score_skip_suppression(weak, named_layers(weak.model, "linear"))
    without = Evidence(model=Straight(), data=[{"x": torch.zeros(1, 4), "labels": torch.zeros(1).long()}])
    with pytest.raises(BadInput, match="Straight has no skip connection"):
        score_skip_suppression(without, named_layers(without.model, "linear"))
