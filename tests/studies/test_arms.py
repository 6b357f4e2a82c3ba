"""Arms: every control spends the same budget, and knows only what its name says."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import BadSelection
from keylayers.scores.groups import averaged, kinds_first
from keylayers.studies.arms import Arm, Budget, controls, select_within_budget, sizes
from tests.scores.examples import network, noise, scored

LAYERS = tuple(replace(layer, lora_size=1 + layer.size // 3) for layer in network(6))


@given(st.integers(0, 10**6), st.sampled_from([0.2, 0.3, 0.5]), st.sampled_from(["lora", "weights"]))
def test_every_control_spends_the_budget_and_no_more(seed, share, of):
    scores, budget = noise(LAYERS, seed), Budget(share, of)
    total, largest = (int(f(sizes(LAYERS, of))) for f in (np.sum, np.max))
    found = controls(scores, budget, seed=seed)
    chosen = select_within_budget(scores, budget)
    for arm in found.values():
        for choice in arm.choices:
            # within 2 % of the chosen set where matched; else not above the budget, and with less left than one layer
            limit = 1.02 * budget.size(chosen) if arm.name == "random, same size" else share * total
            assert share * total - largest - 0.02 * total <= budget.size(choice) <= limit or "kinds" in arm.name
    assert budget.size(chosen) <= share * total
    for choice in found["random, same kinds"].choices:
        assert choice.kinds() == chosen.kinds() and budget.size(choice) == budget.size(chosen)
    drawn = [choice.names for name in found if name.startswith("random") for choice in found[name].choices]
    assert len(found["random"].choices) == 5 and len(set(drawn)) >= 8


def test_depth_only_and_kind_only_choose_whole_blocks_and_kinds():
    kinds = ["lm_head", "attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down", "mlp.gate"]  # the best last
    values = [kinds.index(layer.kind) + 1000.0 * (layer.block or 0) for layer in LAYERS]
    found = controls(scored(LAYERS, values), Budget(0.3, "weights"))
    last = [layer.name for layer in LAYERS if layer.block == 5]
    assert set(last) <= set(found["depth only"].choice(0).names)  # the best block whole, what is left where it fits
    assert found["kind only"].choice(0).kinds()["mlp.gate"] == 6  # the best kind whole


def test_the_reversed_arm_is_the_choice_by_the_negative_scores():
    scores = noise(LAYERS, 3)
    budget = Budget(0.3)
    negative = select_within_budget(scored(LAYERS, -scores.values), budget)
    assert controls(scores, budget)["reversed"].choice(0).names == negative.names


def test_averages_keep_group_means_and_nothing_else():
    scores = noise(LAYERS, 5)
    labels = [layer.kind for layer in LAYERS]
    flat = averaged(scores, labels)
    for kind in set(labels):
        mine = np.array([label == kind for label in labels])
        assert np.ptp(flat.values[mine]) == 0 and flat.values[mine][0] == pytest.approx(scores.values[mine].mean())


def test_drawing_arms_go_on_to_the_next_set_with_every_seed():
    choices = tuple(select_within_budget(noise(LAYERS, seed), Budget(0.3)) for seed in range(3))
    arm = Arm("random", choices)
    assert [arm.choice(seed) for seed in range(4)] == [*choices, choices[0]]
    assert Arm("top", choices[:1]).choice(7) == choices[0]


@pytest.mark.parametrize(("share", "of"), [(0.0, "lora"), (1.0, "lora"), (0.3, "layers")])
def test_a_budget_is_a_share_of_something_that_is_counted(share, of):
    with pytest.raises(BadSelection, match="expected a share"):
        Budget(share, of)


def test_kinds_first_takes_the_best_kind_whole_and_within_it_the_best_layers():
    values = np.arange(len(LAYERS), dtype=float) % 7 + np.array([10.0 * (one.kind == "mlp.down") for one in LAYERS])
    ranked = [LAYERS[place] for place in kinds_first(scored(LAYERS, values))]
    kinds = list(dict.fromkeys(layer.kind for layer in ranked))
    assert kinds[0] == "mlp.down" and [layer.kind for layer in ranked] == sorted(
        (layer.kind for layer in ranked), key=kinds.index
    )
    within = [values[LAYERS.index(layer)] for layer in ranked if layer.kind == "mlp.down"]
    assert within == sorted(within, reverse=True)
    chosen = select_within_budget(scored(LAYERS, values), Budget(0.2), "kinds")
    left, wanted = 0.2 * sum(layer.lora_size for layer in LAYERS), []
    for layer in ranked:  # down that order, every layer that still fits
        if layer.lora_size <= left:
            left -= layer.lora_size
            wanted.append(layer.name)
    assert set(chosen.names) == set(wanted) and chosen.policy == "params:20%:by=kinds:of=lora"


def test_an_arm_of_several_draws_takes_its_next_ones_with_every_seed():
    arm = Arm("random", tuple(controls(noise(LAYERS, 0), Budget(0.3), draws=6)["random"].choices), draws=3)
    assert arm.names(0) + arm.names(1) == [one.names for one in arm.choices] and arm.names(2) == arm.names(0)


def test_where_all_kinds_are_worth_the_same_the_control_by_kind_is_drawn_and_not_refused():
    blocks = [2.5 if layer.block is None else float(layer.block) for layer in LAYERS]  # outside of blocks: their mean
    blocks = scored(LAYERS, blocks)
    drawn = {controls(blocks, Budget(0.3), draws=1, seed=seed)["kind only"].choice(0).names for seed in range(3)}
    assert len(drawn) == 3
