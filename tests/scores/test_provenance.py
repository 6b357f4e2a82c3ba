"""Provenance holds plain JSON only, in copies of its own."""

import json
from pathlib import Path

import numpy as np
import pytest

from keylayers.errors import BadInput
from keylayers.scores import Provenance


def test_values_are_reduced_to_plain_json():
    origin = Provenance(
        settings={
            "betas": (0.9, 0.999),
            "rank": np.int64(8),
            "rate": np.float32(0.5),
            "out": Path("a/b"),
            "on": {2, 1},
        },
        seed=np.int64(3),
    )
    assert origin.settings == {"betas": [0.9, 0.999], "rank": 8, "rate": 0.5, "out": "a/b", "on": [1, 2]}
    assert type(origin.seed) is int
    assert json.loads(json.dumps(origin.settings)) == origin.settings


def test_later_changes_outside_do_not_reach_in():
    settings = {"layers": [1, 2]}
    origin = Provenance(settings=settings)
    settings["layers"].append(3)
    assert origin.settings == {"layers": [1, 2]}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"settings": {"rate": float("nan")}}, r"provenance\.settings\.rate is nan"),
        ({"settings": {"f": print}}, r"provenance\.settings\.f is a builtin_function"),
        ({"settings": {"blob": b"x"}}, "bytes"),
        ({"model": {1: "x"}}, "JSON keys are text"),
        ({"data": ({"id": "x"}, "y")}, r"data\[1\] must be a mapping"),
        ({"versions": {"deep": [{"x": float("inf")}]}}, r"versions\.deep\[0\]\.x"),
    ],
)
def test_what_json_cannot_hold_is_named(fields, words):
    with pytest.raises(BadInput, match=words):
        Provenance(**fields)
