import pytest
import torch
from torch import Tensor, nn

from keylayers.layers.blocks import find_blocks
from keylayers.layers.capturing import capture
from keylayers.layers.deltas import deltas_from_checkpoints
from keylayers.layers.gating import gated
from keylayers.layers.naming import named_layers
from keylayers.layers.prefix import block_outputs, resumed
from tests.layers.helpers import finest, forward_batch, full_state, logits, pair, same_state
from tests.layers.test_naming import Backwards
from tests.tiny_models import ALL, CAUSAL, build


def leaf_of(model: nn.Module, block: str) -> nn.Module:
    """Some module in the block that runs exactly once when the block computes."""
    return next(m for m in model.get_submodule(block).modules() if not list(m.children()) and m._parameters)


@pytest.mark.parametrize("name", ALL)
def test_resuming_at_any_block_gives_the_same_bits(name: str) -> None:
    model, batch = build(name), forward_batch(name)
    before, blocks = full_state(model), find_blocks(model)
    with torch.no_grad():
        native = logits(model, batch)
        with block_outputs(model) as outputs:
            assert torch.equal(logits(model, batch), native)
        assert sorted(outputs) == list(range(len(blocks)))
        for block in (*range(len(blocks) + 1), None):
            ran: list[str] = []
            handles = [
                leaf_of(model, name).register_forward_pre_hook(lambda *_, n=name, ran=ran: ran.append(n))
                for name in blocks
            ]
            with resumed(model, outputs, block):
                assert torch.equal(logits(model, batch), native)
            for handle in handles:
                handle.remove()
            assert ran == list(blocks[len(blocks) if block is None else block :])
    assert same_state(before, full_state(model))


@pytest.mark.parametrize("name", [*CAUSAL, "t5", "cifar-resnet"])
def test_a_changed_layer_is_computed_right_from_where_it_starts(name: str) -> None:
    base, tuned = pair(name)
    layers = named_layers(base, finest(name), tied=True, example=batch if (batch := _example(name)) else None)
    deltas, batch = deltas_from_checkpoints(base, tuned, layers), forward_batch(name)
    gates = deltas.uniform(0.0)
    with torch.no_grad(), gated(base, deltas, lambda: gates, 0.0):
        with block_outputs(base) as outputs:
            native = logits(base, batch)
        for index in {0, 1, len(layers) // 2, len(layers) - 2, len(layers) - 1}:
            gates[index] = 1.0
            expected = logits(base, batch)
            with resumed(base, outputs, outputs.start(layers[index])):
                assert torch.equal(logits(base, batch), expected)
            assert not torch.equal(expected, native)
            gates[index] = 0.0


def _example(name: str) -> dict[str, Tensor] | None:
    return forward_batch(name) if name == "cifar-resnet" else None


def test_layers_outside_the_blocks_start_where_they_are_called() -> None:
    model, x = Backwards(), torch.randn(3, 2)
    layers = {layer.name: layer for layer in named_layers(model, example={"x": x})}
    with torch.no_grad(), block_outputs(model) as outputs:
        model(x)
    starts = {name: outputs.start(layer) for name, layer in layers.items() if layer.block is None}
    assert starts == {"embed": 0, "between": 2, "head": 4}
    assert outputs.start(layers["second.1.up"]) == 3
    with torch.no_grad():
        model.between.weight.mul_(2)
        expected = model(x)
        with resumed(model, outputs, starts["between"]), capture(model, ["first.0.down", "second.0.down"]) as seen:
            assert torch.equal(model(x), expected)
    assert set(seen.outputs) == {"second.0.down"}


def test_a_tied_head_starts_at_the_embedding() -> None:
    model = build("llama-tied")
    head = named_layers(model, tied=True)[-1]
    with torch.no_grad(), block_outputs(model) as outputs:
        logits(model, forward_batch("llama-tied"))
    assert head.name == "lm_head" and outputs.start(head) == 0
    assert outputs.start(named_layers(build("llama"))[-1]) == 3


def test_blocks_that_run_in_another_order_than_they_are_owned_stay_exact() -> None:
    class Swapped(Backwards):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            for block in (*self.second, *self.first):
                x = block(x)
            return self.head(x)

    model, x = Swapped(), torch.randn(3, 2)
    with torch.no_grad():
        with block_outputs(model) as outputs:
            model(x)
        for layer in named_layers(model, example={"x": x}):
            if layer.name != "between":
                weight = model.get_parameter(layer.parameters[0])
                weight.add_(0.1)
                with resumed(model, outputs, outputs.start(layer)):
                    resumed_result = model(x)
                assert torch.equal(resumed_result, model(x)), layer.name
                weight.sub_(0.1)
                with block_outputs(model) as outputs:  # w + 0.1 - 0.1 is not w
                    model(x)


@pytest.mark.parametrize("own_forward", [False, True])
def test_an_exception_restores_the_blocks(own_forward: bool) -> None:
    model, batch = build("llama"), forward_batch("llama")
    if own_forward:  # accelerate puts its own on the instance
        block = model.model.layers[0]
        block.forward = lambda *args, inner=block.forward, **kwargs: inner(*args, **kwargs)
    before, own = full_state(model), vars(model.model.layers[0]).get("forward")
    with torch.no_grad():
        native = logits(model, batch)
        with block_outputs(model) as outputs:
            logits(model, batch)
        with pytest.raises(KeyError), resumed(model, outputs, 2):
            raise KeyError("mine")
        assert torch.equal(logits(model, batch), native)
    assert same_state(before, full_state(model))
    assert (own is not None) == own_forward and vars(model.model.layers[0]).get("forward") is own


def test_gradients_of_upper_blocks_are_right_with_kept_lower_ones() -> None:
    model, batch = build("llama"), forward_batch("llama")
    logits(model, batch).sum().backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters() if ".layers.2." in name}
    model.zero_grad()
    with torch.no_grad(), block_outputs(model) as outputs:
        logits(model, batch)
    with resumed(model, outputs, 2):
        logits(model, batch).sum().backward()
    for name, gradient in wanted.items():
        assert torch.equal(model.get_parameter(name).grad, gradient)
    assert model.model.layers[1].mlp.up_proj.weight.grad is None
    assert isinstance(model.lm_head, nn.Linear)
