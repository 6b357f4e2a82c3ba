"""LayerScores: validation at birth, ranking, intervals, orders without magnitude."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given

from keylayers.errors import BadScores, KeylayersError, UnknownName
from keylayers.scores import LayerScores
from tests.scores.examples import FULL, network, score_sets, scored

LAYERS = network(2)


def test_values_become_a_read_only_float64_copy():
    given_values = np.arange(15)
    scores = scored(LAYERS, given_values)
    given_values[0] = 99
    assert scores.values.dtype == np.float64 and scores.values[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        scores.values[0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.criterion = "other"


@pytest.mark.parametrize("values", [np.arange(15) + 0j, np.arange(15, dtype=np.float16), list(range(15)), [True] * 15])
def test_other_real_numbers_are_taken(values):
    assert scored(LAYERS, values).values.dtype == np.float64


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_names_its_layer(bad):
    values = np.zeros(15)
    values[9] = bad
    with pytest.raises(BadScores, match=r"layer 'layers\.1\.attn\.v'"):
        scored(LAYERS, values)
    with pytest.raises(BadScores, match=r"repeats: layer 'layers\.1\.attn\.v'"):
        scored(LAYERS, np.zeros(15), repeats=np.stack([np.zeros(15), values]))
    with pytest.raises(BadScores, match=r"group 'french': layer 'layers\.1\.attn\.v'"):
        scored(LAYERS, np.zeros(15), groups={"french": values})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros(14), r"shape \(14,\), but \(layers\) with 15 layers"),
        (np.zeros((15, 1)), "shape"),
        (1.0, "shape"),
        (["x"] * 15, "not numbers"),
        ([None] * 15, "has the score nan"),
        ([10**400] * 15, "not numbers"),
        (np.full(15, 1 + 2j), "complex"),
    ],
)
def test_values_of_another_form_are_refused(values, words):
    with pytest.raises(BadScores, match=words):
        scored(LAYERS, values)


def test_layers_must_exist_and_be_distinct():
    with pytest.raises(BadScores, match="no layers"):
        scored((), [])
    with pytest.raises(BadScores, match=r"repeated: layers\.0\.attn\.q"):
        scored((*LAYERS, LAYERS[0]), np.zeros(16))
    with pytest.raises(BadScores, match="named_layers"):
        scored(("a", "b"), np.zeros(2))


def test_criterion_and_granularity_are_checked():
    with pytest.raises(BadScores, match="criterion"):
        LayerScores(LAYERS, np.zeros(15), "", "linear")
    with pytest.raises(UnknownName, match="did you mean 'linear'"):
        LayerScores(LAYERS, np.zeros(15), "x", "linera")


def test_ranking_draws_between_ties():
    scores = scored(LAYERS[:5], [1, 3, 1, 3, 2])
    ranking = [LAYERS.index(layer) for layer in scores.ranking()]
    assert [set(ranking[:2]), ranking[2], set(ranking[3:])] == [{1, 3}, 4, {0, 2}]
    assert scores.by_name()["layers.0.attn.k"] == 3


@given(score_sets())
def test_ranking_is_a_descending_permutation_that_repeats(scores):
    order = scores.order().tolist()
    assert sorted(order) == list(range(len(scores.layers))) and order == scores.order().tolist()
    assert (np.diff(scores.values[order]) <= 0).all()


def test_interval_is_students_t_of_the_repeats():
    repeats = np.random.default_rng(0).normal(size=(5, 15))
    found = scored(LAYERS, repeats.mean(axis=0), repeats=repeats).interval(0.9)
    low, high = scipy.stats.t.interval(0.9, 4, loc=repeats.mean(axis=0), scale=scipy.stats.sem(repeats))
    np.testing.assert_allclose(found, np.stack([low, high], axis=1), rtol=1e-10)


def test_no_interval_without_two_repeats():
    assert scored(LAYERS, np.zeros(15)).interval() is None
    assert scored(LAYERS, np.zeros(15), repeats=np.zeros((1, 15))).interval() is None
    with pytest.raises(BadScores, match="strictly between"):
        scored(LAYERS, np.zeros(15)).interval(1.0)


def test_stated_bounds_are_the_interval_at_their_own_level():
    bounds = np.stack([np.full(15, -1.0), np.ones(15)], axis=1)
    scores = scored(LAYERS, np.zeros(15), bounds=bounds)
    np.testing.assert_array_equal(scores.interval(), bounds)
    with pytest.raises(BadScores, match="95%"):
        scores.interval(0.5)
    with pytest.raises(BadScores, match="low <= high"):
        scored(LAYERS, np.zeros(15), bounds=bounds[:, ::-1])
    with pytest.raises(BadScores, match="not both"):
        scored(LAYERS, np.zeros(15), bounds=bounds, repeats=np.zeros((2, 15)))
    with pytest.raises(BadScores, match="pair per layer"):
        scored(LAYERS, np.zeros(15), bounds=np.zeros((15, 3)))


def test_each_repeat_is_a_ranking_of_its_own():
    repeats = np.random.default_rng(0).normal(size=(3, 15))
    parts = scored(LAYERS, repeats.mean(axis=0), repeats=repeats, provenance=FULL).each_repeat()
    assert [part.values.tolist() for part in parts] == repeats.tolist()
    assert parts[0].provenance == FULL
    assert scored(LAYERS, np.zeros(15)).each_repeat() == ()


def test_an_order_by_hand_is_flagged_ordinal():
    names = [layer.name for layer in LAYERS]
    order = [*names[7:], *LAYERS[:7]]
    scores = LayerScores.from_order(LAYERS, order, criterion="paper", granularity="linear")
    assert scores.ordinal
    assert [layer.name for layer in scores.ranking()] == [*names[7:], *names[:7]]


def test_an_order_must_name_every_layer_once():
    names = [layer.name for layer in LAYERS]
    fields = {"criterion": "paper", "granularity": "linear"}
    with pytest.raises(BadScores, match=r"missing: lm_head; repeated: layers\.0\.attn\.q"):
        LayerScores.from_order(LAYERS, [*names[:-1], names[0]], **fields)
    with pytest.raises(UnknownName, match=r"did you mean 'layers\.0\.attn\.q'"):
        LayerScores.from_order(LAYERS, ["layers.0.atn.q", *names[1:]], **fields)


def test_equality_compares_every_part():
    repeats = np.random.default_rng(0).normal(size=(2, 15))
    scores = scored(LAYERS, np.zeros(15), repeats=repeats, groups={"a": np.ones(15)})
    same = scored(LAYERS, np.zeros(15), repeats=repeats, groups={"a": np.ones(15)})
    assert scores == same and scores.sha256 == same.sha256
    for other in (
        scored(LAYERS, np.ones(15), repeats=repeats, groups={"a": np.ones(15)}),
        scored(LAYERS, np.zeros(15), groups={"a": np.ones(15)}),
        scored(LAYERS, np.zeros(15), repeats=repeats, groups={"a": np.zeros(15)}),
        scored(LAYERS, np.zeros(15), repeats=repeats, groups={"b": np.ones(15)}),
        scored(LAYERS, np.zeros(15), repeats=repeats),
        scored(LAYERS, np.zeros(15), repeats=repeats, groups={"a": np.ones(15)}, provenance=FULL),
    ):
        assert scores != other
    assert scores != "scores" and scored(LAYERS, np.ones(15)).sha256 != scores.sha256


def test_groups_cannot_be_changed_afterwards():
    scores = scored(LAYERS, np.zeros(15), groups={"a": np.ones(15)})
    with pytest.raises(TypeError):
        scores.groups["b"] = np.ones(15)


def test_every_error_here_is_the_users_to_mend():
    assert issubclass(BadScores, KeylayersError)


def test_importing_scores_imports_neither_torch_nor_transformers():
    code = "import sys, keylayers.scores, keylayers.maths; print({'torch', 'transformers', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
