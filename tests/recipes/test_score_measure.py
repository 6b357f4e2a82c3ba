"""How `--measure` and `--sibling` reach a criterion."""

import numpy as np
import pytest
import torch

from keylayers.errors import BadInput, UnknownName
from keylayers.inputs.text import Inputs
from keylayers.recipes.score import score_layers
from keylayers.recipes.score_request import ScoreRequest
from keylayers.runs import open_run
from tests.small_world import request


def scored(asked: ScoreRequest, folder):
    with open_run(folder, "score", asked) as run:
        return score_layers(asked, run)


@pytest.mark.parametrize("measure", ["tokens", "answers", "generated"])
def test_a_measure_is_what_is_compared(world, tmp_path, measure):
    asked = request(world, "ablation", granularity="block", settings={}, measure=measure)
    found = scored(asked, tmp_path / "run")["ablation"]
    noted = found.provenance.settings
    assert noted["measure"] == measure and 0 <= noted["cost"] <= 1 and (np.abs(found.values) <= 1).all()
    assert len(found.layers) == 3 and not (tmp_path / "run" / "stage1").exists()


def test_a_sibling_is_the_tuned_model_and_stage_one_is_not_trained(world, tmp_path):
    loaded = world.inputs().load_model()
    with torch.no_grad():
        for parameter in loaded.model.model.layers[1].parameters():
            parameter.mul_(1.3)
    loaded.model.save_pretrained(tmp_path / "other")
    loaded.tokenizer.save_pretrained(tmp_path / "other")
    common = {"granularity": "block", "settings": {}}
    by_sibling = scored(request(world, "substitution", sibling=str(tmp_path / "other"), **common), tmp_path / "one")
    by_tuned = scored(request(world, "substitution", tuned=str(tmp_path / "other"), **common), tmp_path / "two")
    values = by_sibling["substitution"].values
    np.testing.assert_allclose(values, by_tuned["substitution"].values, atol=1e-6)
    assert values[0] == values[2] == 0 != values[1]
    assert not (tmp_path / "one" / "stage1").exists()


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"measure": "answer"}, UnknownName, "did you mean 'answers'"),
        ({"measure": "answers"}, BadInput, "`measure=answers`: path_integral takes no measure"),
        ({"sibling": "x", "tuned": "y"}, BadInput, "`sibling=x`: `tuned` takes its place"),
        ({"sibling": "x", "criteria": ("ablation",)}, BadInput, "`sibling=x`: ablation looks at no second model"),
    ],
)
def test_what_no_criterion_would_look_at_is_refused_before_anything_is_loaded(
    world, tmp_path, monkeypatch, asked, error, said
):
    monkeypatch.setattr(Inputs, "load_model", lambda self, **options: pytest.fail("loaded a model"))
    with pytest.raises(error, match=said):
        scored(ScoreRequest(**{"criteria": ("path_integral",), "inputs": world.inputs(), **asked}), tmp_path / "run")
