"""Substitution against tuned models whose blocks really were put back."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from keylayers import criteria
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.substitution import Substitution, score_substitution
from keylayers.criteria.support.spans import split_windows
from keylayers.errors import BadInput
from keylayers.layers.deltas import deltas_from_checkpoints
from keylayers.layers.naming import named_layers
from tests import tiny_models
from tests.criteria.examples import batches_of, perturbed
from tests.criteria.test_ablation import mean_loss
from tests.layers.helpers import full_state, same_state


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmoe", "t5"])
@pytest.mark.parametrize("width", [1, 2])
def test_scores_are_those_of_models_with_blocks_put_back(name: str, width: int) -> None:
    base, data = tiny_models.build(name), batches_of(name)
    tuned, layers = perturbed(base), named_layers(base, "block")
    evidence = Evidence(model=base, sibling=tuned, data=data, granularity="block")
    before, beside = full_state(base), full_state(tuned)
    scores = score_substitution(evidence, layers, Substitution(width))
    assert same_state(before, full_state(base)) and same_state(beside, full_state(tuned))
    whole = mean_loss(tuned, evidence)
    for places, value in zip(split_windows(layers, width), scores.values, strict=True):
        back = copy.deepcopy(tuned)
        with torch.no_grad():
            for place in places:
                for name_ in layers[place].parameters:
                    back.get_parameter(name_).copy_(base.get_parameter(name_))
        assert value == pytest.approx(mean_loss(back, evidence) - whole, abs=3e-6)
    given = replace(evidence, sibling=None, deltas=deltas_from_checkpoints(base, tuned, layers))
    np.testing.assert_array_equal(score_substitution(given, layers, Substitution(width)).values, scores.values)
    if width == 1:
        np.testing.assert_array_equal(criteria.get("leave_one_out")(given, layers).values, scores.values)


def test_only_the_block_that_tuning_changed_counts() -> None:
    base, data = tiny_models.build("llama"), batches_of("llama")
    tuned, layers = copy.deepcopy(base), named_layers(base, "block")
    with torch.no_grad():
        for parameter in tuned.model.layers[2].parameters():
            parameter.mul_(1.5)
    evidence = Evidence(model=base, sibling=tuned, data=data, granularity="block")
    alone, pairs = (score_substitution(evidence, layers, Substitution(width)).values for width in (1, 2))
    assert alone[0] == alone[1] == 0 != alone[2]
    np.testing.assert_array_equal(pairs, [0, alone[2], alone[2]])  # windows (0, 1), (1, 2) and (1, 2)


def test_as_many_blocks_are_computed_as_declared() -> None:
    base, calls = tiny_models.build("llama"), []
    layers = named_layers(base, "linear")
    for block in base.model.layers:
        block.input_layernorm.register_forward_pre_hook(lambda *_: calls.append(1))
    evidence = Evidence(model=base, sibling=perturbed(tiny_models.build("llama")), data=batches_of("llama"))
    score_substitution(evidence, layers, Substitution(2))
    assert len(calls) / 3 == pytest.approx(score_substitution.work(layers, Substitution(2), 2).all_forwards)


def test_without_deltas_or_a_sibling_it_says_what_is_missing() -> None:
    base = tiny_models.build("llama")
    layers = named_layers(base, "block")
    with pytest.raises(BadInput, match=r"needs what tuning changed.*`tuned`"):
        score_substitution(Evidence(model=base, data=batches_of("llama")), layers)
    other = Evidence(model=base, data=batches_of("llama"), sibling=tiny_models.build("qwen2"), granularity="block")
    with pytest.raises(BadInput, match="not two versions of one model"):
        score_substitution(other, layers)
