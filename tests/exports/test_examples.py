"""The examples of docs/exports.md are what an export gives for the bundled model and its scores."""

import json
import re
from pathlib import Path

import pytest
import yaml

from keylayers.exports.target import export
from keylayers.models.loading import load_shape
from keylayers.scores import select
from keylayers.scores.files import load
from tests.exports.test_matrix import MINE

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("target", MINE)
def test_the_documented_file_is_what_comes_out(target):
    scores = load(DOCS / "runs" / "demo" / "formal" / "learned_mask.json")
    (text,) = export(load_shape("bundled:llama"), select(scores, "top:4"), target).files.values()
    (shown,) = re.findall(rf"```(?:yaml|json) {target}\n(.*?)```", (DOCS / "exports.md").read_text(), flags=re.DOTALL)
    if target == "peft":
        assert json.loads(shown).items() <= json.loads(text).items()
    elif target == "unsloth":
        assert json.loads(shown) == json.loads(text)
    else:
        assert shown == "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
        assert yaml.safe_load(shown) == yaml.safe_load(text)
