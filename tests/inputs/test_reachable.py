"""What the data never reaches, and what no adapter can hold, is left out of choices and their controls, and named."""

from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn

from keylayers.errors import BadInput
from keylayers.inputs import reachable
from keylayers.inputs.reachable import scores_within_reach, within_adapters, within_reach
from keylayers.layers.layer import Layer
from keylayers.scores import LayerScores, select

LAYERS = tuple(
    Layer(f"{part}.{i}", i, part, (f"{part}.{i}.weight",), 4) for part in ("vision", "text") for i in range(4)
)


@pytest.fixture
def text_alone(monkeypatch):
    monkeypatch.setattr(reachable, "batches", lambda examples, size, shuffle: [])
    monkeypatch.setattr(
        reachable, "reached", lambda model, layers, data: tuple(one for one in layers if one.kind == "text")
    )


def test_selections_and_controls_hold_reached_layers_alone(text_alone, capsys):
    repeats = np.arange(16.0).reshape(2, 8)
    scores = LayerScores(LAYERS, np.arange(8.0), "by_hand", "linear", repeats=repeats, groups={"one": np.arange(8.0)})
    near = scores_within_reach(nn.Identity(), scores, None)
    assert near.values.tolist() == [4, 5, 6, 7] and near.repeats.tolist() == [[4, 5, 6, 7], [12, 13, 14, 15]]
    assert near.groups["one"].tolist() == [4, 5, 6, 7]
    for policy in ("first:2", "random:2:seed=1", "random:2:match=kind:seed=2", "bottom:2"):
        assert {layer.kind for layer in select(near, policy).chosen} == {"text"}
    said = capsys.readouterr().err
    assert "left out 4 of 8 layers, which this data never reaches: vision.0 to vision.3" in said


def test_data_that_reaches_nothing_is_refused(text_alone):
    with pytest.raises(BadInput, match=r"reaches none of the 4 layers \(vision\.0"):
        within_reach(nn.Identity(), LAYERS[:4], None)


def test_layers_that_peft_refuses_are_no_candidates_for_adapters(capsys):
    model = nn.Identity()
    model.config = SimpleNamespace(model_type="falcon_h1")
    layers = tuple(Layer(f"mamba.{key}", 0, key, (f"mamba.{key}.weight",), 4) for key in ("in_proj", "out_proj"))
    assert [layer.name for layer in within_adapters(model, layers)] == ["mamba.in_proj"]
    assert "left out 1 of 2 layers, which peft cannot adapt: mamba.out_proj" in capsys.readouterr().err
    assert within_adapters(nn.Identity(), layers) == layers
