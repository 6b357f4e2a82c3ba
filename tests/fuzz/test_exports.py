"""Configurations of other tools, read back after somebody changed them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keylayers.exports import TARGETS, get
from keylayers.exports.target import ExportSettings
from keylayers.layers.naming import named_layers
from keylayers.scores import LayerScores, select
from tests.fuzz.mutations import damaged, few, only_ours
from tests.tiny_models import build


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return build("llama")


@pytest.mark.parametrize("name", TARGETS)
@few(2)
@given(data=st.data())
def test_read_backs(model, name, data):
    layers = tuple(named_layers(model))
    scores = LayerScores(layers, list(range(len(layers))), "by_hand", "linear")
    target = get(name)
    chosen = select(scores, "blocks:1") if name in ("easyedit", "llamafactory") else select(scores, "top:30%")
    files = only_ours(lambda: target.render(model, chosen, ExportSettings(scores=scores)))
    if files is None:
        return
    changed = {
        key: data.draw(damaged(text.encode())).decode("utf-8", "replace") if data.draw(st.booleans()) else text
        for key, text in files.items()
    }
    only_ours(lambda: target.matched(model, changed))
