"""Criteria of hidden states in a scoring run: one pass for all, each with its own file."""

import pytest
import transformers as hf

from keylayers.errors import BadInput
from keylayers.recipes import evidence as module
from keylayers.recipes.score import score_layers
from keylayers.runs import open_run
from keylayers.scores.files import load
from tests.small_world import request

FOUR = ("cka_shift", "block_influence", "angular_distance", "component_shift")


def test_they_share_one_pass_over_the_data(world, tmp_path, monkeypatch):
    passed: list[int] = []
    forward = hf.LlamaForCausalLM.forward

    def counting(self, **inputs):
        if inputs["input_ids"].device.type != "meta":  # where layers are listed, nothing is computed
            passed.append(len(inputs["input_ids"]))
        return forward(self, **inputs)

    monkeypatch.setattr(module, "require_unseen", lambda loaded, data: None)  # looks of their own
    monkeypatch.setattr(module, "within_reach", lambda model, layers, data: layers)
    monkeypatch.setattr(hf.LlamaForCausalLM, "forward", counting)
    asked = request(world, *FOUR, "random", granularity="block", settings={"window": 5, "seed": 3})
    with open_run(tmp_path / "run", "score", asked) as run:
        scores = score_layers(asked, run)
    records = next(one["records"] for one in scores["cka_shift"].provenance.data if one["split"] == "calibration")
    assert sum(passed) == records  # each record once
    assert tuple(scores) == (*FOUR, "random")
    for name, result in scores.items():
        assert load(tmp_path / "run" / f"{name}.json") == result and result.criterion == name
        assert [layer.name for layer in result.layers] == [f"model.layers.{index}" for index in range(3)]
    assert scores["cka_shift"].provenance.settings["window"] == 5
    assert scores["random"].provenance.settings == {"seed": 3}
    with open_run(tmp_path / "alone", "score", alone := request(world, "cka_shift", granularity="block")) as run:
        assert score_layers(alone, run)["cka_shift"].interval() is not None


def test_linear_layers_are_refused_with_what_to_do(world, tmp_path):
    asked = request(world, *FOUR, granularity="linear")
    with (
        open_run(tmp_path / "run", "score", asked) as run,
        pytest.raises(BadInput, match="scores block layers, not linear; leave `granularity` out"),
    ):
        score_layers(asked, run)
