"""LayerSelector: what it names, peft adapts, and nothing else; ranks keep their mean."""

import inspect

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.helpers import KappaTuneSelector
from peft.tuners.lora import LoraLayer

from keylayers.errors import BadInput, BadScores, BadSelection, UnknownName
from keylayers.exports.ranks import MOST, adapter_size, ranks_by_score
from keylayers.exports.selector import LayerSelector
from keylayers.layers import named_layers
from keylayers.scores import LayerScores, Selection, select
from tests.scores.examples import network, scored
from tests.tiny_models import ALL, LANGUAGE, build


def selector(name: str, seed: int = 0, granularity: str | None = None) -> LayerSelector:
    """Seeded random scores of a tiny model."""
    model = build(name)
    layers = named_layers(model, granularity or ("conv" if name in ("hf-resnet", "cifar-resnet") else "linear"))
    values = np.random.default_rng(seed).normal(size=len(layers))
    return LayerSelector(LayerScores(layers, values, "by_hand", granularity or "linear"), model)


def adapted(config: LoraConfig, name: str) -> dict[str, int]:
    """Weight that carries LoRA -> its rank, after peft put the adapters on a new model of that name."""
    model = get_peft_model(build(name), config)
    found = {}
    for key, value in model.named_parameters():
        if ".lora_A." not in key and ".lora_embedding_A" not in key:
            continue
        module = model.get_submodule(key.partition(".lora_")[0])
        place = key.partition(".lora_")[0].removeprefix("base_model.model.").replace(".base_layer", "")
        owned = getattr(module, "parameter_name", "weight")
        experts = getattr(module, "num_experts", 1) or 1
        found[f"{place}.{owned}"] = value.shape[0] // experts
    return found


def weight_names(selection: Selection) -> set[str]:
    """The weights of the selected layers, without biases."""
    return {name for layer in selection.chosen for name in layer.parameters if not name.endswith("bias")}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("how", [{"top_p": 0.3}, {"num_modules": 1}, {"threshold": 0.5}])
def test_the_names_given_to_a_LoraConfig_adapt_exactly_the_selected_layers(name, how):
    chooser = selector(name)
    modules, tensors = chooser.get_best_targets(**how), chooser.get_best_target_parameters(**how)
    assert isinstance(modules, list) and isinstance(tensors, list)
    config = LoraConfig(r=3, target_modules=modules, target_parameters=tensors)
    assert adapted(config, name) == dict.fromkeys(weight_names(chooser.select(**how)), 3)
    assert adapted(chooser.to_lora_config(**how, r=3, lora_alpha=6), name) == adapted(config, name)


def test_the_arguments_are_those_of_peft_s_selector():
    for method in ("get_best_targets", "get_best_target_parameters"):
        ours, theirs = (inspect.signature(getattr(one, method)) for one in (LayerSelector, KappaTuneSelector))
        assert [(p.name, p.default) for p in ours.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ]


def test_given_condition_numbers_it_chooses_what_peft_s_selector_chooses():
    model = build("llama")
    theirs = KappaTuneSelector(model, show_progress=False)
    theirs._compute_kappas()
    layers = named_layers(model)
    low = LayerScores(layers, [-theirs._condition_numbers[layer.name] for layer in layers], "by_hand", "linear")
    ours = LayerSelector(low, model)
    assert ours.get_best_targets(num_modules=7) == theirs.get_best_targets(num_modules=7)
    assert ours.get_best_targets(top_p=0.5) == theirs.get_best_targets(top_p=0.5)
    fourth = sorted(theirs._condition_numbers.values())[3]
    assert ours.get_best_targets(threshold=-fourth) == theirs.get_best_targets(threshold=fourth)
    assert ours.get_best_targets() == theirs.get_best_targets() and len(ours.get_best_targets()) == len(layers)


def test_names_come_most_critical_first_and_fused_experts_apart():
    chooser = selector("qwen3-moe")
    order = [layer.name for layer in chooser.scores.ranking()]
    modules, tensors = chooser.get_best_targets(), chooser.get_best_target_parameters()
    assert tensors and all(".experts." in name for name in tensors)
    assert modules == [name for name in order if name in modules]
    assert tensors == [name for name in order if name in tensors]
    assert sorted(modules + tensors) == sorted(order)


@pytest.mark.parametrize("how", [{"top_p": 0.3}, {"num_modules": 4}])
def test_select_is_the_policy_of_that_name(how):
    chooser = selector("llama")
    policy = "top:30%" if "top_p" in how else "top:4"
    assert chooser.select(**how) == select(chooser.scores, policy)


def test_the_threshold_is_a_floor_and_belongs_to_what_it_takes():
    model = build("llama")
    layers = named_layers(model)
    chooser = LayerSelector(LayerScores(layers, np.arange(len(layers)) - 3.0, "by_hand", "linear"), model)
    assert chooser.select(threshold=0).indices.tolist() == list(range(3, len(layers)))
    assert len(chooser.select(threshold=-100)) == len(layers)
    with pytest.raises(BadSelection, match=r"no score reaches threshold=99: they lie between -3 and 18"):
        chooser.select(threshold=99)


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"top_p": 0.3, "num_modules": 3}, BadInput, "top_p=0.3 and num_modules=3"),
        ({"top_p": 0.0}, BadInput, "top_p is 0.0"),
        ({"top_p": 30}, BadInput, "top_p is 30: expected a share"),
        ({"num_modules": 0}, BadInput, "num_modules is 0"),
        ({"num_modules": 99}, BadSelection, "99 layers asked for, but there are only 22"),
        ({"threshold": float("nan")}, BadSelection, "no score reaches threshold=nan"),
    ],
)
def test_senseless_amounts_are_refused(how, error, said):
    chooser = selector("llama")
    for method in ("get_best_targets", "get_best_target_parameters", "to_lora_config", "freeze"):
        with pytest.raises(error, match=said):
            getattr(chooser, method)(**how)


def test_scores_of_another_model_are_refused():
    chooser = LayerSelector(selector("gpt2").scores, build("llama"))
    with pytest.raises(BadSelection, match="are not in LlamaForCausalLM"):
        chooser.get_best_targets(top_p=0.3)
    with pytest.raises(BadSelection, match="of another model"):
        chooser.freeze(top_p=0.3)


def test_whole_blocks_are_no_lora_targets_but_can_be_frozen_around():
    chooser = selector("llama", granularity="block")
    with pytest.raises(BadSelection, match="weight matri"):
        chooser.get_best_targets(num_modules=1)
    chooser.freeze(num_modules=1)
    (block,) = chooser.select(num_modules=1).names
    asking = {name for name, value in chooser.model.named_parameters() if value.requires_grad}
    assert asking == {name for name, _ in chooser.model.named_parameters() if name.startswith(f"{block}.")}


def test_freeze_reports_what_trains():
    chooser = selector("llama")
    plan = chooser.freeze(top_p=0.3)
    assert plan.trainable == chooser.select(top_p=0.3).size
    assert plan.trainable == sum(value.numel() for value in chooser.model.parameters() if value.requires_grad)


def test_the_model_stays_as_it_was():
    chooser = selector("olmoe")
    before = [(name, value.requires_grad, value.clone()) for name, value in chooser.model.named_parameters()]
    chooser.to_lora_config(top_p=0.3, ranks="equal")
    after = list(chooser.model.named_parameters())
    assert [(name, flag) for name, flag, _ in before] == [(name, value.requires_grad) for name, value in after]
    assert all(value.equal(old) for (_, value), (_, _, old) in zip(after, before, strict=True))


@pytest.mark.parametrize("name", LANGUAGE)
def test_every_layer_gets_the_rank_its_score_earns(name):
    chooser = selector(name)
    positive = LayerSelector(
        LayerScores(chooser.scores.layers, np.exp(chooser.scores.values), "by_hand", "linear"), chooser.model
    )
    selection = positive.select(top_p=0.4)
    ranks = ranks_by_score(positive.scores, selection, 4, positive.model)
    assert len(set(ranks.values())) > 1
    config = positive.to_lora_config(top_p=0.4, r=4, lora_alpha=8, ranks="by-score")
    by_weight = {key: ranks[layer.name] for layer in selection.chosen for key in weight_names_of(layer)}
    assert adapted(config, name) == by_weight
    model = get_peft_model(build(name), config)
    adapters = [module for module in model.modules() if isinstance(module, LoraLayer)]
    scalings = {value for module in adapters for value in module.scaling.values()}
    assert scalings == {2.0}


def test_no_matrix_gets_more_than_its_full_rank_unless_all_do():
    model = build("llama")  # k_proj and v_proj have 16 rows, the others 32 or more
    layers = [layer for layer in named_layers(model) if layer.block == 0]
    values = [1.0 if layer.kind == "self_attn.k_proj" else 0.1 for layer in layers]
    scores = scored(layers, values)
    everything = select(scores, "all")
    key = "model.layers.0.self_attn.k_proj"
    assert ranks_by_score(scores, everything, 8)[key] == 32  # four times the mean
    capped = ranks_by_score(scores, everything, 8, model)
    assert capped[key] == 16 and sum(capped.values()) == 8 * 7
    assert set(ranks_by_score(scores, everything, 64, model).values()) == {64}
    blocks = named_layers(model, "block")
    uneven = scored(blocks, [3.0, 2.0, 1.0])
    assert list(ranks_by_score(uneven, select(uneven, "all"), 4, model).values()) == [6, 4, 2]
    with pytest.raises(BadSelection, match=r"model\.layers\.0 is no weight matrix of LlamaForCausalLM"):
        adapter_size(model, blocks, {})


@pytest.mark.parametrize("name", ALL)
def test_the_size_of_adapters_is_what_peft_makes(name):
    chooser = selector(name)
    selection = chooser.select(top_p=0.5)
    ranks = {layer: 1 + index % 3 for index, layer in enumerate(selection.names)}
    config = chooser.to_lora_config(top_p=0.5, r=2, lora_alpha=4, ranks=ranks)
    model = get_peft_model(build(name), config)
    made = sum(value.numel() for key, value in model.named_parameters() if ".lora_" in key)
    assert adapter_size(chooser.model, selection.chosen, ranks) == made


def weight_names_of(layer) -> list[str]:
    """Its weights, without biases."""
    return [name for name in layer.parameters if not name.endswith("bias")]


def test_ranks_by_name_leave_the_others_at_r():
    chooser = selector("llama")
    first, *others = chooser.select(num_modules=4).names
    config = chooser.to_lora_config(num_modules=4, r=2, ranks={first: 5})
    assert adapted(config, "llama") == {f"{first}.weight": 5} | {f"{name}.weight": 2 for name in others}
    with pytest.raises(BadInput, match="1 layers that are not selected, first nowhere"):
        chooser.to_lora_config(num_modules=4, ranks={"nowhere": 5})
    with pytest.raises(UnknownName, match="did you mean 'by-score'"):
        chooser.to_lora_config(num_modules=4, ranks="by_score")


LAYERS = network(5)


@given(
    values=st.lists(st.floats(0, 1e12, allow_subnormal=False), min_size=36, max_size=36),
    rank=st.integers(1, 64),
    count=st.integers(1, 36),
)
def test_ranks_keep_their_mean_and_their_order_within_bounds(values, rank, count):
    assume(len(set(values)) > 1)
    scores = scored(LAYERS, values)
    selection = select(scores, f"top:{count}", allow_total=True)
    ranks = ranks_by_score(scores, selection, rank)
    assert tuple(ranks) == selection.names
    assert sum(ranks.values()) == rank * count
    assert all(1 <= one <= MOST * rank for one in ranks.values())
    by_name = scores.by_name()
    for first in ranks:
        for second in ranks:
            assert ranks[first] >= ranks[second] or by_name[first] <= by_name[second]


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ([1, 1, 1, 1], [8, 8, 8, 8]),
        ([0, 0, 0, 0], [8, 8, 8, 8]),
        ([4, 2, 1, 1], [16, 8, 4, 4]),  # in proportion: 32 ranks over a sum of 8
        ([3, 3, 1, 1], [12, 12, 4, 4]),
        ([100, 1, 1, 1], [29, 1, 1, 1]),  # at least 1 each
        ([1, 1, 1, 0], [11, 10, 10, 1]),  # 31 over three; the remainder goes to the first
        ([1, 1, 1 + 1e-13, 0], [10, 10, 11, 1]),  # or to the higher score, however little higher
        ([1e-300, 2e-300, 0, 1e-300], [8, 15, 1, 8]),
        ([25, 4, 2, 1], [25, 4, 2, 1]),
    ],
)
def test_ranks_counted_by_hand(values, ranks):
    layers = LAYERS[:4]
    everything = Selection(layers, np.ones(4, dtype=bool), "all", allow_total=True)
    assert list(ranks_by_score(scored(layers, values), everything, 8).values()) == ranks


def test_ranks_are_in_exact_proportion_where_that_gives_whole_numbers():
    scores = scored(LAYERS[:4], [20.0, 5.0, 0.5, 0.1])
    assert list(ranks_by_score(scores, select(scores, "all"), 64).values()) == [200, 50, 5, 1]


def test_no_layer_takes_the_whole_budget():
    layers = LAYERS[:10]
    everything = Selection(layers, np.ones(10, dtype=bool), "all", allow_total=True)
    ranks = ranks_by_score(scored(layers, [1.0] + [0.0] * 9), everything, 10)
    assert list(ranks.values()) == [40, *[7] * 6, *[6] * 3]


def test_scores_that_are_no_shares_are_refused():
    scores = scored(LAYERS, [-1.0, -2.0] + [1.0] * 34)
    everything = select(scores, "all")
    with pytest.raises(BadScores, match=r"2 of the 36 selected .* \(layers\.0\.attn\.q: -1, .*\).*above:0"):
        ranks_by_score(scores, everything, 8)
    assert len(ranks_by_score(scores, select(scores, "above:0"), 8)) == 34
    order = LayerScores.from_order(LAYERS, LAYERS, criterion="by_hand", granularity="linear")
    with pytest.raises(BadScores, match="only state an order; use equal ranks"):
        ranks_by_score(order, select(order, "top:3"), 8)
    with pytest.raises(UnknownName):
        ranks_by_score(scored(LAYERS[:3], [1, 2, 3]), select(scores, "top:9"), 8)
    with pytest.raises(BadSelection, match="no layer is selected"):
        ranks_by_score(scores, Selection.of(LAYERS, names=[], allow_empty=True), 8)
