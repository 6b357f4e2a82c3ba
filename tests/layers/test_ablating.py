"""Contributions taken away, averaged and exchanged, against weights that really were changed."""

import copy
from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.ablating import Exchange, Means, ablated, contributions, places_of
from keylayers.layers.capturing import capture
from keylayers.layers.intervene import skipped
from keylayers.layers.naming import named_layers
from keylayers.layers.prefix import block_outputs, bypassed, resumed
from tests.layers.helpers import forward_batch, full_state, logits, same_state
from tests.tiny_models import ALL, CAUSAL, LANGUAGE, build

SUBLAYERED = [*LANGUAGE, "vit"]


def silenced_copy(model: nn.Module, names: list[str]) -> nn.Module:
    """A copy in which every matrix below those modules, and the bias beside it, really is zero."""
    edited = copy.deepcopy(model)
    modules = dict(edited.named_modules())
    with torch.no_grad():
        for name, module in modules.items():
            if isinstance(module, nn.Embedding) or not any(name == n or name.startswith(f"{n}.") for n in names):
                continue
            if any(one.ndim > 1 for one in module.parameters(recurse=False)):
                for key, one in module.named_parameters(recurse=False):
                    if one.ndim > 1 or "bias" in key:
                        one.zero_()
    return edited


def noisy_biases(name: str) -> nn.Module:
    """Fresh models have biases of zero, which would hide a bias that is left in."""
    model = build(name)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, one in model.named_parameters():
            if key.endswith("bias"):
                one.add_(0.1 * torch.randn(one.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", SUBLAYERED)
def test_a_sublayer_without_its_contribution_is_one_with_weights_of_zero(name: str) -> None:
    model, batch = noisy_biases(name), forward_batch(name)
    before = full_state(model)
    with torch.no_grad():
        native = logits(model, batch)
        for layer in named_layers(model, "sublayer")[::2] + named_layers(model, "sublayer")[1::3]:
            first, *rest = layer.name.split("+")
            names = [first, *(f"{first.rpartition('.')[0]}.{one}" for one in rest)]
            expected = logits(silenced_copy(model, names), batch)
            with ablated(model, [layer]):
                found = logits(model, batch)
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
            assert not torch.equal(found, native), layer.name
    assert same_state(before, full_state(model))


@pytest.mark.parametrize("name", ALL)
def test_a_block_is_the_identity_whether_it_is_computed_or_not(name: str) -> None:
    model, batch = build(name), forward_batch(name)
    before, blocks = full_state(model), named_layers(model, "block")
    with torch.no_grad():
        with block_outputs(model) as outputs, capture(model, blocks) as seen:
            logits(model, batch)
        for index, layer in enumerate(blocks):
            if seen.inputs[layer.name].shape != seen.outputs[layer.name].shape:
                with pytest.raises(BadInput, match="shape"), ablated(model, [layer]):
                    logits(model, batch)
                with pytest.raises(BadInput, match="cannot be the identity"), bypassed(model, outputs, {index: None}):
                    logits(model, batch)
                continue
            with skipped(model, [layer]):
                expected = logits(model, batch)
            with ablated(model, [layer]):
                assert torch.equal(logits(model, batch), expected)
            with resumed(model, outputs, index), bypassed(model, outputs, {index: None}):
                assert torch.equal(logits(model, batch), expected)
    assert same_state(before, full_state(model))


@pytest.mark.parametrize("name", [name for name in CAUSAL if name not in ("gemma2", "gemma3", "olmo2")])
def test_generation_without_a_block_is_that_of_a_model_whose_block_is_an_identity(name: str) -> None:
    """The block still fills its place in the cache of keys and values, so that later tokens find theirs."""
    model = build(name)
    ids = torch.tensor([[5, 9, 7, 3], [4, 8, 6, 11]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    settings = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0, "eos_token_id": None}
    settings |= {"return_dict_in_generate": True, "output_logits": True}

    def written(one: nn.Module, **more: bool) -> Tensor:
        return torch.stack(one.generate(**batch, **settings, **more).logits)

    native = written(model)
    for layer in named_layers(model, "block"):
        identity = silenced_copy(model, [layer.name])
        with ablated(model, [layer]):
            found = written(model)
        torch.testing.assert_close(found, written(identity), rtol=0, atol=1e-5)
        torch.testing.assert_close(found, written(identity, use_cache=False), rtol=0, atol=1e-5)
        assert (found - native).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "granularity"),
    [("llama", "linear"), ("cifar-resnet", "linear"), ("cifar-resnet", "conv")]
    + [(name, one) for name in ("olmoe", "gpt-oss") for one in ("linear", "expert", "router")],
)
def test_single_layers_and_experts_are_silenced_too(name: str, granularity: str) -> None:
    model, batch = build(name), forward_batch(name)
    before, layers = full_state(model), named_layers(model, granularity)
    with torch.no_grad():
        for layer in layers[:: max(1, len(layers) // 4)]:
            edited = copy.deepcopy(model)
            for parameter in layer.parameters:
                whole, bracket, index = parameter.partition("[")
                tensor = edited.get_parameter(whole)
                (tensor[int(index[:-1])] if bracket else tensor).zero_()
            with ablated(model, [layer]):
                torch.testing.assert_close(logits(model, batch), logits(edited, batch), rtol=0, atol=2e-6)
    assert same_state(before, full_state(model))


def test_two_experts_of_one_tensor_are_silenced_together() -> None:
    model, batch = build("olmoe"), forward_batch("olmoe")
    layers = named_layers(model, "expert")[:2]
    edited = copy.deepcopy(model)
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters:
                whole, _, index = parameter.partition("[")
                edited.get_parameter(whole)[int(index[:-1])].zero_()
        with ablated(model, layers):
            torch.testing.assert_close(logits(model, batch), logits(edited, batch), rtol=0, atol=2e-6)


def padded() -> dict[str, Tensor]:
    batch = forward_batch("llama", batch=3, seq=10)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][1, 6:] = 0
    batch["attention_mask"][2, 3:] = 0
    return batch


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_means_are_over_tokens_without_padding_and_stand_in_for_outputs(granularity: str) -> None:
    model, batches = build("llama"), [padded(), forward_batch("llama", batch=2, seq=4, seed=3)]
    layer = named_layers(model, granularity)[2]
    means, rows = Means(), []
    with torch.no_grad():
        with contributions(model, [layer], means.see), capture(model, [layer]) as seen:
            for batch in batches:
                mask = batch.get("attention_mask")
                means.kept = None if mask is None else mask.bool()
                logits(model, batch)
                made = seen.outputs[layer.name]
                made = made - seen.inputs[layer.name] if granularity == "block" else made
                rows.append(made[mask.bool()] if mask is not None else made.flatten(0, 1))
        expected = torch.cat(rows).mean(0)
        with ablated(model, [layer], means), capture(model, [layer]) as seen:
            logits(model, batches[0])
    made = seen.outputs[layer.name]
    made = made - seen.inputs[layer.name] if granularity == "block" else made
    torch.testing.assert_close(made, expected.expand_as(made), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "olmoe", "gpt2"])
@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_every_record_gets_what_another_contributed_at_the_same_token(name: str, granularity: str) -> None:
    model, batch = build(name), padded()
    layer = named_layers(model, granularity)[2]
    fill = Exchange(3, batch["attention_mask"].bool(), seed=(4,))
    assert sorted(fill.donors.tolist()) == [0, 1, 2] and all(fill.donors != torch.arange(3))

    def made_by(*context) -> Tensor:
        with torch.no_grad(), ExitStack() as stack:
            for one in context:
                stack.enter_context(one)
            seen = stack.enter_context(capture(model, [layer]))
            logits(model, batch)
        made = seen.outputs[layer.name]
        return made - seen.inputs[layer.name] if granularity == "block" else made

    clean = made_by(contributions(model, [layer], fill.see))
    given = made_by(ablated(model, [layer], fill))
    lengths = [10, 6, 3]
    for row, donor in enumerate(fill.donors.tolist()):
        for place in range(10):
            torch.testing.assert_close(given[row, place], clean[donor, place % lengths[donor]], rtol=0, atol=1e-6)
    assert torch.equal(Exchange(3, None, (4,)).donors, fill.donors)
    assert len({tuple(Exchange(6, None, (seed,)).donors.tolist()) for seed in range(5)}) > 1


def test_what_cannot_be_filled_is_refused() -> None:
    model = build("olmoe")
    layers = named_layers(model)
    fused = next(one for one, where in zip(layers, places_of(model, layers), strict=True) if where.parameters)
    with pytest.raises(BadInput, match=r"experts.*no module of its own"), ablated(model, [fused], Means()):
        pass
    with pytest.raises(BadInput, match="a batch holds only one"):
        Exchange(1, None, (0,))
