from collections import namedtuple

import pytest
import torch
from torch import Tensor, nn

from keylayers.errors import BadInput, UnknownName
from keylayers.layers.capturing import Captured, capture, first_tensor, hidden_input
from keylayers.layers.gating import frozen
from keylayers.layers.naming import named_layers
from tests.layers.helpers import forward_batch, full_state, logits, same_state
from tests.tiny_models import ALL, build

Pair = namedtuple("Pair", ["hidden", "extra"])


class Awkward(nn.Module):
    """Sublayers that take hidden states by keyword and return tensors, tuples, named tuples or dicts."""

    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4)

        def forward(self, flag: bool, *, mask: Tensor, hidden_states: Tensor) -> tuple[None, Tensor, Tensor]:
            return None, self.map(hidden_states) * mask, mask

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Pair:
            return Pair(self.map(x), "kept")

    class Dict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 4)

        def forward(self, *, values: Tensor) -> dict:
            return {"note": 3, "hidden": self.map(values)}

    def __init__(self) -> None:
        super().__init__()
        self.keyword, self.named, self.dict = self.Keyword(), self.Named(), self.Dict()
        self.tail = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(4)
        _, x, _ = self.keyword(True, mask=mask, hidden_states=x)
        x = self.named(x).hidden
        return self.tail(self.dict(values=x)["hidden"])


def by_hand(model: nn.Module, name: str, batch: dict) -> list:
    seen: list = []
    module = model.get_submodule(name)
    handle = module.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
    )
    with torch.no_grad():
        logits(model, batch)
    handle.remove()
    return seen


@pytest.mark.parametrize("name", ALL)
def test_blocks_equal_a_hook_written_by_hand(name: str) -> None:
    model, batch = build(name), forward_batch(name)
    blocks = [layer.name for layer in named_layers(model, "block")]
    with torch.no_grad(), capture(model, blocks) as seen:
        native = logits(model, batch)
    assert list(seen.outputs) == list(seen.inputs) == blocks
    for block in (blocks[0], blocks[-1]):
        (args, kwargs, out), *_ = by_hand(model, block, batch)
        assert torch.equal(seen.outputs[block], out if isinstance(out, Tensor) else out[0])
        assert torch.equal(seen.inputs[block], args[0] if args else kwargs["hidden_states"])
    with torch.no_grad():
        assert torch.equal(logits(model, batch), native)


def test_keyword_inputs_and_every_sort_of_output() -> None:
    model, x = Awkward(), torch.randn(2, 4)
    with torch.no_grad(), capture(model, ["keyword", "named", "dict"]) as seen:
        model(x)
    assert torch.equal(seen.inputs["keyword"], x), "not the mask, which is also passed by keyword"
    assert torch.equal(seen.outputs["keyword"], model.keyword.map(x))
    assert torch.equal(seen.inputs["named"], seen.outputs["keyword"])
    assert torch.equal(seen.outputs["named"], model.named.map(seen.inputs["named"]))
    assert torch.equal(seen.inputs["dict"], seen.outputs["named"])
    assert torch.equal(seen.outputs["dict"], model.dict.map(seen.inputs["dict"]))


def test_first_tensor_and_hidden_input_refuse_what_holds_none() -> None:
    assert first_tensor((None, torch.ones(2), torch.zeros(2))).sum() == 2
    with pytest.raises(BadInput, match="NoneType, which holds no tensor"):
        first_tensor(None)
    with pytest.raises(BadInput, match="holds no tensor"):
        first_tensor({"a": 1})
    with pytest.raises(BadInput, match="without any tensor"):
        hidden_input((1, None), {"flag": True})
    chosen = hidden_input((), {"mask": torch.zeros(1), "hidden_states": torch.ones(1)})
    assert chosen.item() == 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmoe", "bert", "vit", "cifar-resnet"])
@pytest.mark.parametrize("frozen_model", [False, True])
def test_gradients_equal_autograds(name: str, frozen_model: bool) -> None:
    model, batch = build(name), forward_batch(name)
    blocks = [layer.name for layer in named_layers(model, "block")]
    kept: dict[str, Tensor] = {}
    hooks = []
    for block in blocks:

        def keep(module: nn.Module, args: object, out: object, block: str = block) -> None:
            hidden = out if isinstance(out, Tensor) else out[0]
            hidden.retain_grad()
            kept[block] = hidden

        hooks.append(model.get_submodule(block).register_forward_hook(keep))
    logits(model, batch).square().sum().backward()
    for hook in hooks:
        hook.remove()
    expected = {block: hidden.grad.clone() for block, hidden in kept.items()}
    model.zero_grad()
    if frozen_model:
        with frozen(model), capture(model, blocks, gradients=True) as seen:
            logits(model, batch).square().sum().backward()
    else:
        with capture(model, blocks, gradients=True) as seen:
            logits(model, batch).square().sum().backward()
    assert set(seen.gradients) == set(blocks)
    for block in blocks:
        assert torch.equal(seen.gradients[block], expected[block])
        assert not seen.outputs[block].requires_grad


def test_outputs_stay_in_the_graph_when_asked() -> None:
    model = build("llama")
    with capture(model, ["model.layers.1"], detach=False) as seen:
        logits(model, forward_batch("llama"))
    seen.outputs["model.layers.1"].sum().backward()
    assert model.model.layers[1].mlp.up_proj.weight.grad is not None
    assert model.model.layers[2].mlp.up_proj.weight.grad is None


def test_stop_runs_nothing_after_the_last_layer() -> None:
    model, ran = build("llama"), []
    for index in range(3):
        model.model.layers[index].mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    after_the_call = []
    with torch.no_grad(), capture(model, ["model.layers.0", "model.layers.1"], stop=True) as seen:
        logits(model, forward_batch("llama"))
        after_the_call.append(True)
    assert ran == [0, 1] and after_the_call == []
    with torch.no_grad(), capture(model, ["model.layers.0", "model.layers.1"]) as whole:
        logits(model, forward_batch("llama"))
    assert torch.equal(seen.outputs["model.layers.1"], whole.outputs["model.layers.1"])


def test_the_latest_call_counts() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with torch.no_grad(), capture(model, ["0"]) as seen:
        model(torch.zeros(1, 2))
        model(torch.ones(3, 2))
    assert seen.inputs["0"].shape == (3, 2)


@pytest.mark.parametrize("ending", ["normal", "stop", "body", "forward", "unknown"])
def test_nothing_is_left_behind(ending: str) -> None:
    model, batch = build("llama"), forward_batch("llama")
    before = full_state(model)
    wrong = {**batch, "attention_mask": torch.zeros(7, 7, 7)} if ending == "forward" else batch
    names = ["model.layers.0", "nothing" if ending == "unknown" else "lm_head"]

    def run() -> Captured:
        with torch.no_grad(), capture(model, names, stop=ending == "stop", gradients=True) as seen:
            logits(model, wrong)
            if ending == "body":
                raise KeyError("mine")
        return seen

    if ending in ("normal", "stop"):
        assert set(run().outputs) == set(names)
    else:
        with pytest.raises({"body": KeyError, "forward": Exception, "unknown": UnknownName}[ending]):
            run()
    assert same_state(before, full_state(model))


@pytest.mark.parametrize(
    ("architecture", "layer", "owner"),
    [
        ("olmoe", "model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.experts"),
        ("olmoe", "model.layers.0.mlp.experts[2]", "model.layers.0.mlp.experts"),
        ("bert", "bert.encoder.layer.1.intermediate+output", "bert.encoder.layer.1.intermediate"),
    ],
)
def test_a_layer_that_is_no_module_names_the_module(architecture: str, layer: str, owner: str) -> None:
    with pytest.raises(BadInput, match=f"name '{owner}'"), capture(build(architecture), [layer]):
        pass


def test_an_unknown_layer_offers_the_nearest() -> None:
    with (
        pytest.raises(UnknownName, match=r"did you mean.*model\.layers\.2"),
        capture(build("llama"), ["model.layer.2"]),
    ):
        pass
