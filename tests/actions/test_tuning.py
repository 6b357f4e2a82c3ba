"""tuning_only: exactly the selected parameters train in any loop; the forecast counted by hand."""

import pytest
import torch
from torch import nn

from keylayers.actions.fingerprinting import fingerprints
from keylayers.actions.freezing import forecast, selected_parameters, tensors_that_may_change, tuning_only
from keylayers.errors import BadSelection
from keylayers.layers import named_layers
from keylayers.scores import Selection, select
from keylayers.training.adapters import LoraSettings, attach_lora
from tests.tiny_models import ALL, build, inputs
from tests.training.small import block, picked, weights

WITHOUT_LINEAR_HEAD = ("hf-resnet", "cifar-resnet")


def step_by_hand(model: nn.Module, name: str, parameters: list[nn.Parameter]) -> None:
    """One step of a hand-written loop."""
    out = model(**inputs(name))
    logits = out if isinstance(out, torch.Tensor) else out.logits
    optimiser = torch.optim.SGD(parameters, lr=0.1)
    logits.float().pow(2).mean().backward()
    optimiser.step()


@pytest.mark.parametrize("name", ALL)
def test_exactly_the_selected_parameters_train_on_every_architecture(name):
    model = build(name)
    granularity = "conv" if name in WITHOUT_LINEAR_HEAD else "linear"
    layers = named_layers(model, granularity)
    inner = [layer for layer in layers if layer.block is not None]
    selection = Selection.of(layers, names=[layer.name for layer in inner[1::3]])
    flags = {key: value.requires_grad for key, value in model.named_parameters()}
    before = fingerprints(model)
    with tuning_only(model, selection) as parameters:
        asking = {id(value) for value in model.parameters() if value.requires_grad}
        assert asking == {id(value) for value in parameters}
        step_by_hand(model, name, parameters)
    after = fingerprints(model)
    changed = {key for key in before if before[key] != after[key]}
    wanted = {key for layer in selection.chosen for key in layer.parameters}
    assert changed and changed <= wanted
    assert {key for key in wanted if not key.endswith("bias")} <= changed
    assert {key: value.requires_grad for key, value in model.named_parameters()} == flags


def test_flags_come_back_after_an_exception_whatever_they_were():
    model = build("llama")
    model.model.embed_tokens.weight.requires_grad_(False)
    flags = [value.requires_grad for value in model.parameters()]
    with pytest.raises(ZeroDivisionError), tuning_only(model, block(model, 1)):
        assert sum(value.requires_grad for value in model.parameters()) == 7
        raise ZeroDivisionError
    assert [value.requires_grad for value in model.parameters()] == flags


def test_selections_nest():
    model = build("llama")
    with tuning_only(model, block(model, 0, 1)) as outer:
        with tuning_only(model, block(model, 2)) as inner:
            assert [value.requires_grad for value in outer] == [False] * 14
            assert all(value.requires_grad for value in inner)
        assert all(value.requires_grad for value in outer)


def test_a_tied_head_is_refused_with_the_remedy():
    model = build("llama-tied")
    layers = named_layers(model, tied=True)
    selection = Selection.of(layers, names=["lm_head"])
    with (
        pytest.raises(BadSelection, match=r"lm_head\.weight is tied to model\.embed_tokens\.weight.*untie"),
        tuning_only(model, selection),
    ):
        pass
    assert all(value.requires_grad for value in model.parameters())


def test_layers_of_another_model_are_refused_by_name():
    model = build("gpt2")
    with pytest.raises(BadSelection, match=r"1 of the 1 selected parameters .* model\.layers\.1\.mlp\.up_proj\.weight"):
        selected_parameters(model, picked(build("llama"), "model.layers.1.mlp.up_proj"))


def test_fused_experts_train_as_wholes():
    model = build("olmoe")
    name = "model.layers.1.mlp.experts.down_proj"
    before = weights(model)
    with tuning_only(model, picked(model, name)) as parameters:
        assert [tuple(value.shape) for value in parameters] == [(4, 32, 48)]
        step_by_hand(model, "olmoe", parameters)
    assert [key for key, value in weights(model).items() if not torch.equal(value, before[key])] == [name]


def test_single_experts_of_a_fused_tensor_are_refused():
    model = build("olmoe")
    selection = Selection.of(named_layers(model, "expert"), names=["model.layers.0.mlp.experts[1]"])
    with pytest.raises(BadSelection, match=r"\[1\] is a slice of a fused tensor.*granularity linear"):
        selected_parameters(model, selection)


def test_a_wrapped_model_trains_the_same_base_weights_and_not_its_adapters():
    model = build("llama")
    selection = block(model, 1)
    adapted = attach_lora(model, block(model, 1, 2).chosen, LoraSettings(rank=2), seed=0)
    before = weights(adapted)
    with tuning_only(adapted, selection) as parameters:
        step_by_hand(adapted, "llama", parameters)
    changed = {key for key, value in weights(adapted).items() if not torch.equal(value, before[key])}
    assert changed == {f"base_model.model.{layer.name}.base_layer.weight" for layer in selection.chosen}


def test_a_compiled_model_trains_the_same_weights():
    model = build("llama")
    selection = block(model, 1)
    wrapped = torch.compile(model, backend="eager")
    with tuning_only(wrapped, selection):
        asking = {key for key, value in model.named_parameters() if value.requires_grad}
    assert asking == {key for layer in selection.chosen for key in layer.parameters}


def test_quantised_weights_are_refused():
    model = build("llama")
    model.model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(BadSelection, match=r"up_proj\.weight is stored as uint8.*`method=qlora`"):
        selected_parameters(model, block(build("llama"), 1))


def test_an_empty_choice_that_was_allowed_still_trains_nothing():
    model = build("llama")
    empty = Selection.of(named_layers(model), names=[], allow_empty=True)
    with pytest.raises(BadSelection, match="nothing would train"):
        selected_parameters(model, empty)


def test_running_statistics_beside_the_selected_may_change_and_no_others():
    model = build("cifar-resnet")
    selection = Selection.of(named_layers(model, "block"), names=["layer1.1"])
    allowed = tensors_that_may_change(model, selection)
    assert {"layer1.1.conv1.weight", "layer1.1.bn2.running_mean", "layer1.1.bn1.num_batches_tracked"} <= allowed
    assert not any(name.startswith(("layer1.0", "layer2", "bn1", "conv1")) for name in allowed)
    convolution = Selection.of(named_layers(model, "conv"), names=["layer1.1.conv1"])
    assert tensors_that_may_change(model, convolution) == {"layer1.1.conv1.weight"}


def test_the_forecast_counts_what_trains():
    model = build("llama")  # hidden 32, intermediate 48, 4 heads of which 2 hold keys, vocabulary 96, 3 blocks
    attention = 2 * 32 * 32 + 2 * 32 * 16
    per_block = attention + 3 * 32 * 48
    total = 2 * 96 * 32 + 3 * (per_block + 2 * 32) + 32
    plan = forecast(model, block(model, 1))
    assert (plan.trainable, plan.total) == (per_block, total)
    assert plan.share == pytest.approx(per_block / total)
    assert plan.optimiser_bytes == 12 * per_block
    assert (plan.lowest_block, plan.blocks, plan.reaches_embeddings) == (1, 3, False)
    assert f"trainable {per_block:,} of {total:,}" in str(plan)
    assert "2 of 3 blocks (down to block 1)" in str(plan)


def test_the_forecast_of_half_precision_and_of_adapters():
    model = build("llama")
    half = forecast(model.bfloat16(), block(model, 2))
    assert half.optimiser_bytes == 6 * half.trainable
    adapters = [nn.Parameter(torch.zeros(2, 32)), nn.Parameter(torch.zeros(48, 2))]
    plan = forecast(model, block(model, 0), adapters)
    assert plan.trainable == 2 * 32 + 48 * 2 and plan.optimiser_bytes == 12 * plan.trainable
    assert "3 of 3 blocks" in str(plan)


def test_the_forecast_says_how_deep_the_backward_pass_goes():
    head = forecast(build("llama"), picked(build("llama"), "lm_head"))
    assert head.lowest_block is None and "no block" in str(head)
    vision = build("vit")
    patches = named_layers(vision, "conv")
    assert forecast(vision, Selection.of(patches, names=[patches[0].name], allow_total=True)).reaches_embeddings
    resnet = build("hf-resnet")
    layers = named_layers(resnet, "conv")
    stem = forecast(resnet, Selection.of(layers, names=[layers[0].name]))
    assert stem.reaches_embeddings and "to the embeddings" in str(stem)
    assert not forecast(resnet, select(layers, "last:2")).reaches_embeddings


def test_the_forecast_counts_a_4_bit_model_before_packing():
    model = build("llama")
    whole = forecast(model, block(model, 1)).total
    weight = model.model.layers[0].mlp.up_proj.weight
    packed = nn.Parameter(torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = type("State", (), {"shape": weight.shape})()
    model.model.layers[0].mlp.up_proj.weight = packed
    assert forecast(model, block(build("llama"), 1)).total == whole
