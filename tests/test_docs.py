"""What the documents show is run here: the worked example of CONTRIBUTING and the Python of the README."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from keylayers.criteria import CRITERIA
from keylayers.criteria.protocol import Evidence
from keylayers.layers import named_layers
from tests import tiny_models

ROOT = Path(__file__).resolve().parent.parent


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def test_the_worked_example_scores_weights_of_constant_two_as_two():
    module = ModuleType("weight_rms")
    sys.modules["weight_rms"] = module  # dataclasses look their module up
    exec(python_blocks("CONTRIBUTING.md")[0], module.__dict__)
    model = tiny_models.build("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    layers = named_layers(model)
    scores = module.score_weight_rms(Evidence(model=model), layers)
    np.testing.assert_allclose(scores.values, 2.0)
    assert scores.criterion == "weight_rms" and len(python_blocks("CONTRIBUTING.md")[0].splitlines()) <= 40


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_has_a_card_that_begins_with_its_name(name):
    assert (ROOT / "docs" / "cards" / f"{name}.md").read_text().startswith(f"# {name}\n")


def test_the_readme_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks("README.md")
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    assert namespace["selection"].names
