"""Ablation against figures that others published: stories260K without each of its blocks, on real stories."""

import os
from pathlib import Path

import pytest

from keylayers.criteria.ablation import Ablation, score_ablation
from keylayers.criteria.protocol import Evidence
from keylayers.data import load_records
from keylayers.layers.naming import named_layers
from keylayers.models.loading import load_model

MODEL = Path(os.environ.get("KEYLAYERS_MODELS", "absent")) / "stories260K"
STORIES = Path(os.environ.get("KEYLAYERS_DATA", "absent")) / "text" / "tinystories_1000.json.gz"


@pytest.mark.skipif(not (MODEL.is_dir() and STORIES.is_file()), reason="$KEYLAYERS_MODELS and $KEYLAYERS_DATA not set")
def test_losses_of_stories260k_without_each_block_are_those_published():
    loaded = load_model(str(MODEL))
    texts = [record.text for record in list(load_records(str(STORIES)))[:30]]
    tokens = [loaded.tokenizer(text, return_tensors="pt").input_ids[:, :256] for text in texts]  # no end of text
    evidence = Evidence(model=loaded.model, data=[{"input_ids": one, "labels": one} for one in tokens])
    found = score_ablation(evidence, named_layers(loaded.model, "block"), Ablation())
    whole = found.provenance.settings["cost"]
    assert whole == pytest.approx(1.318, abs=0.01)
    assert [whole + value for value in found.values] == pytest.approx([4.84, 2.59, 2.07, 2.16, 2.29], abs=0.01)
