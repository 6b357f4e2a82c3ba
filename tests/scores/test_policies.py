"""Every policy: against brute force where it optimises, by property otherwise."""

import math
import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keylayers.errors import BadSelection
from keylayers.layers.layer import Layer, total_size
from keylayers.scores import LayerScores, Provenance, select
from keylayers.scores.caveats import list_caveats, ranking_caveats
from tests.scores.examples import network, noise, score_sets, scored

SEVEN = network(32)  # 225 layers
WITHOUT_SCORES = [
    "first:30%", "last:5", "all", "random:30%:seed=1", "random:params=30%", "params:40%:by=last", "ends", "blocks:1",
]  # fmt: skip
ANY = [
    "top:30%", "bottom:25%", "first:30%", "last:30%", "all", "random:30%:seed=3", "random:30%:match=kind",
    "random:30%:match=params", "random:params=60%:seed=2", "params:60%", "params:60%:by=density", "not:bottom:25%",
    "params:60%:by=kinds",
    "params:60%:by=reverse", "params:60%:by=first", "contiguous:50%", "ends", "above:0", "suffix:30%",
]  # fmt: skip


def picked(source, policy, **fields):
    return select(source, policy, allow_empty=True, allow_total=True, **fields)


@given(score_sets(), st.sampled_from(ANY))
def test_a_choice_is_repeatable_and_has_its_complement(scores, policy):
    try:
        one = picked(scores, policy)
    except BadSelection:  # no consecutive run of blocks, no positive score, too small a budget
        assume(False)
    assert one == picked(scores, policy)
    plain = policy.removeprefix("not:")
    other = picked(scores, plain if plain != policy else f"not:{policy}")
    np.testing.assert_array_equal(one.mask, ~other.mask)


@given(score_sets(), st.sampled_from(["top", "bottom", "first", "last", "random"]), st.integers(1, 100))
def test_shares_choose_as_many_as_they_say(scores, name, percent):
    n = len(scores.layers)
    assert len(picked(scores, f"{name}:{percent}%")) == max(1, round(percent * n / 100))


@given(score_sets(), st.data())
def test_top_takes_the_largest_scores_and_says_where_they_tie(scores, data):
    count = data.draw(st.integers(1, len(scores.layers)))
    top = picked(scores, f"top:{count}")
    assert sorted(scores.values[top.mask]) == sorted(scores.values)[-count:]
    cut, left = min(scores.values[top.mask]), scores.values[~top.mask]
    tied = [side.tolist().count(cut) for side in (scores.values[top.mask], scores.values)]
    ties = top.provenance.get("measured", {}).get("ties")
    assert ties == ({"chosen": tied[0], "among": tied[1], "score": cut} if cut in left else None)
    assert bool(list_caveats(top)) == bool(ties)
    if count < len(scores.layers):
        rest = picked(scores, f"bottom:{len(scores.layers) - count}")
        np.testing.assert_array_equal(rest.mask, ~top.mask)


def test_ties_are_drawn_not_taken_from_the_beginning_of_the_network():
    layers = network(8)
    ranks = [float(i % 8 == 0) for i in range(len(layers))]
    firsts = []
    for one in range(40):  # other scores elsewhere give other draws
        chosen = select(scored(layers, [*ranks[:-1], -1.0 - one]), "top:20")
        assert chosen == select(scored(layers, [*ranks[:-1], -1.0 - one]), "top:20")
        firsts.append(np.mean(chosen.indices[np.array(ranks)[chosen.indices] == 0]))
    assert np.mean(firsts) == pytest.approx(len(layers) / 2, abs=3) and len(set(firsts)) > 20


@pytest.mark.parametrize("policy", ["top:30%", "bottom:25%", "params:30%", "random:30%:match=kind", "contiguous:1"])
def test_scores_that_are_all_equal_choose_nothing(policy):
    flat = scored(network(2), np.full(15, 0.5))
    with pytest.raises(BadSelection, match=r"all 15 layers have the score 0.5 \(by_hand\), which ranks nothing"):
        select(flat, policy)
    assert len(select(flat, "random:30%")) == 4 and len(select(flat, "top:100%", allow_total=True)) == 15


def test_a_control_that_is_the_selection_itself_says_so():
    layers = tuple(Layer(f"n{i}", None, f"n{i}", (f"n{i}.w",), 4) for i in range(6))
    control = select(noise(layers), "random:30%:match=kind:seed=5")
    (said,) = list_caveats(control)
    assert "the very layers of top:30%, as no other layers have these kinds" in said
    assert list_caveats(select(noise(SEVEN), "random:30%:match=kind")) == ()
    assert (
        "2 runs of blocks tie"
        in list_caveats(select(scored(network(3, head=False), [2, 1, 1, 1, 1, 1, 1] * 3), "not:contiguous:2"))[0]
    )


def test_a_ranking_says_that_many_of_its_layers_tie():
    assert ranking_caveats(noise(SEVEN)) == ranking_caveats(scored(SEVEN[:1], [1.0])) == ()
    assert "all 15 layers have the same score, 0: they are not ranked" in ranking_caveats(scored(network(2), [0] * 15))
    (said,) = ranking_caveats(scored(network(2), [1, 2, *[0] * 13]))
    assert said.startswith("13 of 15 layers have the same score, 0")


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        ({"points": 4, "completeness_error": 0.04, "loss_base": 2.0, "loss_tuned": 1.0}, ""),
        ({"points": 4, "completeness_error": 0.24, "loss_base": 2.0, "loss_tuned": 1.0}, "24%.*`settings.points=16`"),
        ({"points": 64, "completeness_error": 0.24, "loss_base": 2.0, "loss_tuned": 1.0}, "24%.*the loss jumps"),
        ({"points": 4, "completeness_error": 0.01, "loss_base": 1.0, "loss_tuned": 1.5}, "shares of no gain"),
    ],
)
def test_shares_of_a_drop_that_do_not_add_up_say_so(noted, said):
    scores = replace(noise(network(2)), provenance=Provenance(settings=noted))
    found = " ".join(ranking_caveats(scores))
    assert re.search(said, found) if said else not found


def test_counts_of_the_published_tables():
    assert len(select(noise(SEVEN), "top:75%")) == 169
    assert len(select(noise(SEVEN), "bottom:25%")) == 56
    assert len(select(noise(network(5, head=False)), "top:30%")) == 10


def test_first_and_last_go_by_forward_order():
    assert select(SEVEN, "first:3").indices.tolist() == [0, 1, 2]
    assert select(SEVEN, "last:2").names == ("layers.31.mlp.down", "lm_head")


@pytest.mark.parametrize("policy", WITHOUT_SCORES)
def test_policies_without_scores_take_plain_layers(policy):
    assert select(SEVEN, policy).mask.tolist() == select(noise(SEVEN), policy).mask.tolist()


@pytest.mark.parametrize(
    "policy", ["top:3", "bottom:3", "random:3:match=kind", "params:10%", "contiguous:2", "above:0", "suffix:30%"]
)
def test_policies_that_rank_refuse_plain_layers(policy):
    with pytest.raises(BadSelection, match="only layers were given"):
        select(SEVEN, policy)


def test_orders_serve_ranks_but_not_magnitudes():
    order = LayerScores.from_order(SEVEN, SEVEN[::-1], criterion="paper", granularity="linear")
    assert select(order, "top:1").names == ("lm_head",)
    assert select(order, "params:10%").size <= 0.1 * total_size(SEVEN)
    for policy in ("above:0", "contiguous:2", "suffix:30%", "params:10%:by=density", "params:10%:by=kinds"):
        with pytest.raises(BadSelection, match="only state an order"):
            select(order, policy)


def test_all_is_total_by_its_name_and_nothing_else_is():
    assert len(select(SEVEN, "all")) == 225
    for policy in ("not:all", "top:100%", "above:-99", "above:99", "first:225"):
        with pytest.raises(BadSelection, match=r"chooses (all|none)"):
            select(noise(SEVEN), policy)
    assert len(select(noise(SEVEN), "top:100%", allow_total=True)) == 225
    with pytest.raises(BadSelection, match="226 layers asked for, but there are only 225"):
        select(noise(SEVEN), "top:226")


def test_random_choices_follow_their_seed_and_reach_every_layer():
    draws = [select(SEVEN, f"random:30%:seed={seed}").mask for seed in range(40)]
    assert len({mask.tobytes() for mask in draws}) == 40
    counts = np.sum(draws, axis=0)
    assert counts.min() > 0 and counts.max() < 30


@given(score_sets(), st.integers(1, 99), st.integers(0, 99))
def test_kind_matched_draws_have_the_kinds_of_the_top_set(scores, percent, seed):
    control = picked(scores, f"random:{percent}%:seed={seed}:match=kind")
    assert control.kinds() == picked(scores, f"top:{percent}%").kinds()


@given(score_sets(most=9), st.integers(10, 90), st.integers(0, 5))
def test_parameter_matched_draws_are_within_2_percent_where_that_can_be(scores, percent, seed):
    top = picked(scores, f"top:{percent}%")
    assume(len(top) < len(scores.layers))
    control = picked(scores, f"random:{percent}%:seed={seed}:match=params")
    sizes = np.array([layer.size for layer in scores.layers])
    sums = [sum(part) for k in range(1, len(sizes)) for part in combinations(sizes.tolist(), k)]
    nearest = min(abs(one - top.size) for one in sums)
    assert abs(control.size - top.size) <= max(0.02 * top.size, nearest)
    assert control.provenance["measured"]["ratio"] == control.size / top.size


def test_parameter_matched_draws_vary_and_match_at_full_size():
    scores = noise(SEVEN)
    controls = [select(scores, f"random:30%:seed={seed}:match=params") for seed in range(20)]
    assert all(abs(one.provenance["measured"]["ratio"] - 1) <= 0.02 for one in controls)
    assert len({one.mask.tobytes() for one in controls}) == 20
    assert np.sum([one.mask for one in controls], axis=0)[:-1].min() > 0, "every layer but the head can be drawn"


def with_lora(layers):
    """The layers with LoRA counts that rank them otherwise than their weights do."""
    return tuple(replace(layer, lora_size=1 + 7 * i % 11) for i, layer in enumerate(layers))


@given(score_sets(), st.integers(5, 95), st.sampled_from(["params:{}%:of=lora", "random:params={}%:of=lora:seed=3"]))
def test_budgets_of_lora_count_what_lora_adds(scores, percent, policy):
    scores = scored(with_lora(scores.layers), scores.values)
    total = sum(layer.lora_size for layer in scores.layers)
    assume(min(layer.lora_size for layer in scores.layers) <= percent * total // 100)
    chosen = picked(scores, policy.format(percent))
    used = sum(layer.lora_size for layer in chosen.chosen)
    assert 0 < used <= percent * total / 100
    left = [layer.lora_size for layer in (~chosen).chosen]
    assert not left or used + min(left) > percent * total // 100


def test_a_match_of_lora_parameters_is_close_where_one_of_weights_is_not():
    layers = tuple(Layer(f"n{i}", i, "a", (f"n{i}.w",), 10, lora_size=1 + i % 2 * 9) for i in range(60))
    scores = scored(layers, [float(i % 2) for i in range(60)])  # the top layers are those LoRA adds most to
    wanted = sum(layer.lora_size for layer in select(scores, "top:30%").chosen)
    drawn = [select(scores, f"random:30%:match=params{of}").chosen for of in ("", ":of=lora")]
    weights, lora = (sum(layer.lora_size for layer in one) / wanted for one in drawn)
    assert weights < 0.9 and abs(lora - 1) <= 0.02


def test_counts_of_lora_need_scores_that_state_them_and_a_policy_that_counts_parameters():
    with pytest.raises(BadSelection, match="score again"):
        select(noise(SEVEN), "params:30%:of=lora")
    with pytest.raises(BadSelection, match="leave out 'of'"):
        select(noise(with_lora(SEVEN)), "random:30%:of=lora")


def test_a_parameter_match_needs_parameters():
    layers = tuple(Layer(f"skip.{i}", i, "skip", (), 0) for i in range(6))
    with pytest.raises(BadSelection, match="use match=kind"):
        select(noise(layers), "random:2:match=params")
    with pytest.raises(BadSelection, match="none of the layers has any"):
        select(noise(layers), "params:50%")


@given(score_sets(), st.integers(1, 100), st.sampled_from(["score", "density", "reverse", "first", "last", "random"]))
def test_parameter_budgets_are_never_exceeded_and_leave_no_room(scores, percent, by):
    policy = f"random:params={percent}%:seed=7" if by == "random" else f"params:{percent}%:by={by}"
    total, sizes = total_size(scores.layers), [layer.size for layer in scores.layers]
    if 100 * min(sizes) > percent * total:
        with pytest.raises(BadSelection, match="allow at least"):
            picked(scores, policy)
        return
    one = picked(scores, policy)
    assert 100 * one.size <= percent * total
    unused = [size for size, chosen in zip(sizes, one.mask, strict=True) if not chosen]
    assert all(100 * (one.size + size) > percent * total for size in unused)
    assert one.provenance["measured"]["parameters"] == one.size


def test_params_goes_down_its_ranking():
    layers = tuple(Layer(f"l{i}", i, "k", (), size) for i, size in enumerate([60, 10, 20, 10]))
    scores = scored(layers, [12.0, 1.0, 3.0, 2.0])
    assert select(scores, "params:70%").names == ("l0", "l3")
    assert select(scores, "params:40%").names == ("l1", "l2", "l3")
    assert select(scores, "params:60%").names == ("l0",)
    assert select(scores, "params:30%:by=density").names == ("l2", "l3")
    assert select(scores, "params:20%:by=reverse").names == ("l1", "l3")
    assert select(scores, "params:70%:by=first").names == ("l0", "l1")
    assert select(scores, "params:30%:by=last").names == ("l2", "l3")


@given(score_sets(elements=st.floats(-1e9, 1e9)), st.integers(1, 4))
def test_contiguous_is_the_best_run_of_blocks(scores, length):
    present = {layer.block for layer in scores.layers}
    runs = [range(b, b + length) for b in present if set(range(b, b + length)) <= present]
    if not runs or length > len(present):
        with pytest.raises(BadSelection, match="blocks"):
            picked(scores, f"contiguous:{length}")
        return

    def worth(run):
        return math.fsum(v for v, layer in zip(scores.values, scores.layers, strict=True) if layer.block in run)

    one = picked(scores, f"contiguous:{length}")
    chosen = sorted({layer.block for layer in one.chosen})
    assert chosen == list(range(chosen[0], chosen[0] + length))
    assert worth(chosen) == max(map(worth, runs))
    assert chosen[0] == min(run[0] for run in runs if worth(run) == worth(chosen)), "the earliest of equal runs"
    assert len(one) == sum(layer.block in chosen for layer in scores.layers)


def test_ends_are_the_outer_blocks():
    assert {layer.block for layer in select(SEVEN, "ends").chosen} == {0, 31}
    assert {layer.block for layer in select(SEVEN, "ends:4-8").chosen} == {4, 8}
    assert {layer.block for layer in select(SEVEN, "ends:4-4").chosen} == {4}
    with pytest.raises(BadSelection, match=r"reaches outside the model: its layers lie in blocks 0\.\.31"):
        select(SEVEN, "ends:4-32")
    with pytest.raises(BadSelection, match="lie in blocks"):
        select((Layer("a", None, "a", (), 1), Layer("b", None, "b", (), 1)), "ends")


def test_blocks_take_all_their_layers():
    assert len(select(SEVEN, "blocks:3,4,8")) == 21
    with pytest.raises(BadSelection, match="block 32 is not in this model"):
        select(SEVEN, "blocks:3,32")


def test_above_is_strict():
    scores = scored(SEVEN[:4], [0.0, 1.0, -1.0, 2.0])
    assert select(scores, "above:0").indices.tolist() == [1, 3]
    assert select(scores, "above:-1").indices.tolist() == [0, 1, 3]


@given(score_sets(most=10), st.integers(1, 99), st.sampled_from([50, 80, 95, 100]))
def test_suffix_is_the_highest_cut_that_keeps_the_sum(scores, percent, keep):
    """Against all subsets: none of at most as many layers keeps enough and starts higher."""
    n, count = len(scores.layers), max(1, round(percent * len(scores.layers) / 100))
    gains = np.maximum(scores.values, 0)
    best = np.sort(gains)[::-1][:count].sum()
    policy = f"suffix:{count}:keep={keep}%"
    if best == 0:
        with pytest.raises(BadSelection, match="no score is above 0"):
            picked(scores, policy)
        return
    enough = keep / 100 * best - 1e-9
    cuts = [
        min(part)
        for k in range(1, count + 1)
        for part in combinations(range(n), k)
        if gains[list(part)].sum() >= enough
    ]
    one = picked(scores, policy)
    assert one.indices.min() >= max(cuts) and len(one) <= count
    assert gains[one.mask].sum() >= enough
    assert (scores.values[one.mask] > 0).all()
    plain = scores.values[scores.order()[:count]].sum()
    assert scores.values[one.mask].sum() >= keep / 100 * plain - 1e-9, "so the plain sum is kept too"


def test_suffix_on_a_worked_example():
    scores = scored(SEVEN[:6], [0.3, 5.0, -2.0, 4.0, 4.9, 1.0])
    one = select(scores, "suffix:2")  # top two: 5.0 + 4.9; 4.9 + 4.0 keeps 90 %, 5.0 is needed
    assert one.indices.tolist() == [1, 4]
    assert select(scores, "suffix:2:keep=89%").indices.tolist() == [3, 4]
    assert one.provenance["measured"]["kept"] == 1.0
    assert one.provenance["measured"]["lowest_layer"] == "layers.0.attn.k"
    assert select(scores, "suffix:3:keep=60%").indices.tolist() == [3, 4, 5]


def test_a_parsed_policy_serves_as_well():
    from keylayers.scores import parse

    assert select(noise(SEVEN), parse("not:bottom:25%")) == select(noise(SEVEN), "not:bottom:25%")
    assert len(select(noise(SEVEN), "not:bottom:25%")) == 169
