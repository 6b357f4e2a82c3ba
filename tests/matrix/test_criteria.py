"""Every criterion on every tiny architecture, on low-rank and on dense changes."""

import copy
import functools
import pickle
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from keylayers import criteria
from keylayers.criteria.angular_distance import AngularDistance
from keylayers.criteria.cka_shift import CkaShift
from keylayers.criteria.component_shift import ComponentShift
from keylayers.criteria.learned_mask import LearnedMask
from keylayers.criteria.path_integral import PathIntegral
from keylayers.criteria.protocol import Evidence
from keylayers.criteria.robust_capacity import RobustCapacity
from keylayers.criteria.shapley import Shapley
from keylayers.criteria.signal_noise import SignalNoise
from keylayers.criteria.skip_suppression import SkipSuppression
from keylayers.criteria.token_clusters import TokenClusters
from keylayers.errors import BadInput
from keylayers.layers.layer import Layer
from keylayers.scores.files import load, save
from keylayers.scores.scores import LayerScores
from tests import tiny_models
from tests.covering import covering
from tests.criteria.examples import (
    CONVOLUTIONAL,
    EXPERT_MODELS,
    evidence_of,
    mean_loss,
    scores_blocks_alone,
    suited,
)

KINDS = ("lora", "dense")
SETTINGS: dict[str, Any] = {
    "learned_mask": LearnedMask(steps=3, learning_rate=0.2),
    "path_integral": PathIntegral(points=2),
    "signal_noise": SignalNoise(variant="spectrum"),  # corrected, random weights have no signal and all score 0
}
RECTIFIED = (*CONVOLUTIONAL, "t5")  # units switch on the way: the slope jumps, and more points are needed
SETTINGS["token_clusters"] = TokenClusters(clusters=8, restarts=1)
SETTINGS["cka_shift"] = CkaShift(position="mean")  # images have no last token
SETTINGS["component_shift"] = ComponentShift(components=2, position="mean")
SETTINGS["angular_distance"] = AngularDistance(position="mean")
REFUSED = {
    **{
        (criterion, name): "no angle between them"
        for criterion in ("block_influence", "angular_distance")
        for name in CONVOLUTIONAL
    },
    **{("logit_lens_entropy", name): "needs a prediction at every position" for name in ("vit", *CONVOLUTIONAL)},
    **{("token_clusters", name): "number of positions between blocks" for name in CONVOLUTIONAL},
    ("logit_lens_entropy", "t5"): "needs one stack of blocks",
    **{
        (criterion, name): "takes images, one tensor"
        for criterion in ("feature_fragility", "robust_capacity")
        for name in tiny_models.LANGUAGE
    },
    **{("class_separation", name): "the data says no class" for name in tiny_models.LANGUAGE},
}
"""(criterion, model) -> the reason why it cannot."""
SETTINGS["shapley"] = Shapley(permutations=2)
SETTINGS["robust_capacity"] = RobustCapacity(steps=2, attack_steps=2)
SETTINGS["skip_suppression"] = SkipSuppression(success="likelihood")  # a share of five records has six values
EVERY = {"skip_suppression": 3}
"""Step between the layers scored, where each takes ten passes a batch."""
ONCE = ("first_step", "gradient_norm", "relative_gradient", "gradient_signal_noise", "fisher")
ORDERED = ("learned_mask",)  # sees one batch a step, so their order matters


@functools.cache
def shared(name: str, kind: str) -> Evidence:
    """One model and its changes for all tests, left in a state that a careless criterion would tidy up."""
    evidence = evidence_of(name, kind, every=3)
    model = evidence.model
    assert model is not None
    model.train()
    next(model.children()).eval()  # a part the user keeps in eval mode
    parameters = list(model.parameters())
    parameters[-1].requires_grad_(False)
    parameters[0].grad = torch.ones_like(parameters[0])
    model.register_forward_hook(lambda module, args, output: None)  # the user's own
    return evidence


def needs(criterion: str) -> frozenset[str]:
    return criteria.get(criterion).needs


def score(criterion: str, evidence: Evidence) -> LayerScores:
    return criteria.get(criterion)(evidence, asked(criterion, evidence), SETTINGS.get(criterion))


def asked(criterion: str, evidence: Evidence) -> tuple[Layer, ...]:
    return suited(criterion, evidence)[:: EVERY.get(criterion, 1)]


@dataclass(frozen=True)
class State:
    """All of a model, and of the process, that a criterion must leave as it was."""

    tensors: dict[str, tuple[int, int, torch.Tensor]]
    """Name -> identity, version counter (it counts writes, even those of equal values), copy."""
    gradients: dict[str, tuple[int, torch.Tensor | None]]
    wanting: dict[str, bool]
    training: dict[str, bool]
    hooks: dict[str, tuple[int, ...]]
    own: dict[str, frozenset[str]]
    """Attributes on each module itself: a `forward` put on the instance would show."""
    generators: tuple[bytes, bytes, str]

    @classmethod
    def of(cls, model: nn.Module) -> "State":
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        modules = dict(model.named_modules())
        kinds = [key for key in vars(nn.Module()) if key.endswith("_hooks")]
        return cls(
            {name: (id(one), one._version, one.detach().clone()) for name, one in named.items()},
            {name: (id(one.grad), copy.deepcopy(one.grad)) for name, one in model.named_parameters()},
            {name: one.requires_grad for name, one in model.named_parameters()},
            {name: one.training for name, one in modules.items()},
            {name: tuple(len(getattr(one, kind)) for kind in kinds) for name, one in modules.items()},
            {name: frozenset(vars(one)) for name, one in modules.items()},
            (torch.get_rng_state().numpy().tobytes(), pickle.dumps(np.random.get_state()), repr(random.getstate())),
        )

    def assert_same(self, later: "State", registers_anew: bool = False) -> None:
        for name, (identity, version, value) in self.tensors.items():
            other = later.tensors[name]
            assert identity == other[0] and torch.equal(value, other[2]), name
            assert version == other[1] or (registers_anew and value.ndim > 1), name
        for name, (identity, gradient) in self.gradients.items():
            other_identity, other_gradient = later.gradients[name]
            assert identity == other_identity, name
            assert gradient is None or torch.equal(gradient, other_gradient), name
        for part in ("wanting", "training", "hooks", "own", "generators"):
            assert getattr(self, part) == getattr(later, part), part


class Stopped(Exception):
    """Raised in the middle of a loss."""


def stopping(evidence: Evidence, after: int) -> Evidence:
    """The evidence with a loss that fails, once its forward pass is done, at its call number `after` (from 0)."""
    calls = 0

    def loss(model: nn.Module, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        try:
            return evidence.loss(model, batch)
        finally:  # also where a criterion ends the pass at the last block
            if calls == after + 1:
                raise Stopped

    return replace(evidence, loss=loss)


CHECKS = ("order", "first", "later")
"""What is asked besides of scores: batches in another order, a loss that fails the first time, or in the middle."""


def rows(deltas: bool, data: bool) -> list:
    """Criteria that need these on every model; changes are nothing to a criterion that needs none, nor is a loss."""
    chosen = [name for name in criteria.CRITERIA if ("deltas" in needs(name), "data" in needs(name)) == (deltas, data)]
    kinds, checks = KINDS if deltas else ("dense",), CHECKS if data else ("order",)
    return covering(tuple(tiny_models.ALL), chosen, kinds, checks)


@pytest.mark.parametrize(
    ("name", "criterion", "kind", "check"),
    sorted(
        (row for deltas in (True, False) for data in (True, False) for row in rows(deltas, data)),
        key=lambda row: row.values[0],  # so that one process makes a model for all its rows
    ),
)
def test_scores_are_sound_and_the_model_is_left_as_it_was(
    name: str, criterion: str, kind: str, check: str, tmp_path: Path
) -> None:
    evidence = shared(name, kind)
    assert evidence.model is not None and evidence.data is not None and evidence.deltas is not None
    if (criterion, name) in REFUSED:
        with pytest.raises(BadInput, match=REFUSED[criterion, name]):
            score(criterion, evidence)
        return
    before = State.of(evidence.model)
    # peft takes the fused tensors of experts and routers off their modules and puts them back, which counts as a write
    registers_anew = criterion == "first_step" and name in EXPERT_MODELS
    scores = score(criterion, evidence)
    before.assert_same(State.of(evidence.model), registers_anew)

    assert scores.layers == asked(criterion, evidence) and np.isfinite(scores.values).all()
    assert len(set(scores.values.tolist())) >= len(scores.layers) / 2  # they tell layers apart

    save(scores, tmp_path / "scores.json")
    assert load(tmp_path / "scores.json") == scores

    if check != "order":
        once = criterion in ONCE or scores_blocks_alone(criterion)  # the losses of two batches, once each
        with pytest.raises(Stopped):
            score(criterion, stopping(evidence, 0 if check == "first" else 1 if once else 2))
        before.assert_same(State.of(evidence.model), registers_anew)
    elif criterion in ORDERED:
        np.testing.assert_array_equal(score(criterion, evidence).values, scores.values)
    else:
        reversed_order = score(criterion, replace(evidence, data=evidence.data[::-1]))
        np.testing.assert_allclose(reversed_order.values, scores.values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", tiny_models.ALL)
def test_scores_equal_changing_the_weights_by_hand(name: str, kind: str) -> None:
    """Taking one change back and adding one alone, on copies; and the path's integral is the drop of the loss."""
    evidence = evidence_of(name, kind, double=True, every=8, size=0.05)
    assert evidence.deltas is not None
    count = len(evidence.deltas.layers)
    base, tuned = (mean_loss(evidence, [gate] * count, gate) for gate in (0.0, 1.0))
    out, single = score("leave_one_out", evidence), score("add_one_in", evidence)
    for column, layer in enumerate(evidence.deltas.layers):
        one = [float(index == column) for index in range(count)]
        without = mean_loss(evidence, [1 - gate for gate in one], 1.0)
        assert out.values[column] == pytest.approx(without - tuned, abs=1e-6), layer.name
        assert single.values[column] == pytest.approx(base - mean_loss(evidence, one, 0.0), abs=1e-6), layer.name
    if name not in EXPERT_MODELS:  # where a router changes its mind on the way, the loss jumps: no slope shows it
        path = criteria.get("path_integral")(evidence, evidence.deltas.layers)
        total = path.values.sum() + path.provenance.settings["remainder"]
        share = 0.03 if name in RECTIFIED else 0.005
        assert total == pytest.approx(base - tuned, rel=share, abs=1e-6)
