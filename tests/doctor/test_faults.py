"""Every planted fault is named by its own gate, and by no other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from keylayers.doctor import probe, structure, undo
from keylayers.doctor.examination import CHECKS, LEFT_AS_FOUND
from keylayers.layers.intervene import scaled as really_scaled
from tests.data.bpe import byte_level
from tests.doctor.test_examine import constant, failures, outcomes
from tests.tiny_models import build


def test_a_hook_that_ignores_its_input_is_found_on_its_block_alone():
    model = build("llama")
    model.model.layers[1].register_forward_hook(constant)
    found = failures(model)
    assert found.keys() == {"every part acts"}
    told = found["every part acts"]
    assert told.startswith("model.layers.1: its output does not depend on its input; a hook sits on it")
    assert "constant" in told and "model.layers.0" not in told
    assert "constant" in outcomes(model)["hooks"].detail
    assert outcomes(model)["gradient reaches"].status == "skip"


def test_a_tied_weight_untied_is_found():
    model = build("llama-tied")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    found = failures(model)
    assert found.keys() == {"tied weights"}
    assert "lm_head.weight is declared tied to model.embed_tokens.weight" in found["tied weights"]
    assert "equal values" in found["tied weights"]
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    assert "different values" in failures(model)["tied weights"]


def test_a_block_that_returns_early_is_found():
    model = build("qwen2")
    model.model.layers[2].forward = lambda hidden_states, *args, **kwargs: hidden_states
    found = failures(model)
    assert found == {
        "every part acts": "model.layers.2: it returns its input unchanged and 7 of its 7 layers are never called"
    }


class Discarding(nn.Module):
    """A gated mlp that computes its `up_proj` and throws it away."""

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x):
        self.up_proj(x)
        return self.down_proj(F.silu(self.gate_proj(x)))


def test_a_layer_whose_output_is_thrown_away_is_found():
    model = build("llama")
    model.model.layers[0].mlp = Discarding(model.model.layers[0].mlp)
    found = failures(model)
    assert found == {"every part acts": "model.layers.0.mlp.up_proj: its output changes nothing in the model's output"}


class AlwaysDropping(nn.Dropout):
    """A dropout that pays no heed to eval()."""

    def forward(self, x):
        return F.dropout(x, self.p, training=True)


def test_a_dropout_left_on_is_found_and_named():
    model = build("llama")
    block = model.model.layers[1]
    block.mlp = nn.Sequential(block.mlp, AlwaysDropping(0.5))
    found = failures(model)
    assert found.keys() == {"repeatable"}
    assert "first in model.layers.1.mlp.1 (AlwaysDropping), which got the same input" in found["repeatable"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value):
    model = build("gpt2")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 3] = value
    found = failures(model)
    assert found.keys() == {"finite weights"}
    assert "transformer.h.1.mlp.c_fc.weight (1 of 4,096)" in found["finite weights"]
    assert {check.status for name, check in outcomes(model).items() if name in ("capture", "undo", "padding")} == {
        "skip"
    }


def test_a_module_put_in_twice_is_found():
    model = build("llama")
    layers = model.model.layers
    layers[2].mlp.down_proj = layers[1].mlp.down_proj
    found = failures(model)
    assert found.keys() == {"tied weights"}
    assert "model.layers.1.mlp.down_proj.weight and model.layers.2.mlp.down_proj.weight" in found["tied weights"]


class Detaching(nn.Module):
    """A projection that gradients cannot pass into."""

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.weight = projection.weight

    def forward(self, x):
        return F.linear(x, self.weight.detach())


def test_a_layer_that_no_gradient_reaches_is_found():
    model = build("llama")
    attention = model.model.layers[1].self_attn
    attention.o_proj = Detaching(attention.o_proj)
    found = failures(model)
    assert found.keys() == {"gradient reaches"}
    assert (
        "1 of 22 layers" in found["gradient reaches"] and "model.layers.1.self_attn.o_proj" in found["gradient reaches"]
    )


class Doubling(torch.autograd.Function):
    """The identity, with twice its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class WrongBackward(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return Doubling.apply(self.inner(x))


def test_a_wrong_backward_is_found():
    model = build("llama")
    model.model.norm = WrongBackward(model.model.norm)
    found = failures(model)
    assert found.keys() == {"gradient is right"}
    assert "by more than 5%" in found["gradient is right"]


def test_a_mask_that_is_ignored_is_found_by_padding():
    model = build("llama")
    model.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {k: v for k, v in kwargs.items() if k in ("input_ids", "use_cache")}),
        with_kwargs=True,
    )
    found = failures(model)
    assert found.keys() == {"padding"} and "on the left" in found["padding"] and "on the right" not in found["padding"]


def test_a_hook_that_changes_a_layers_output_is_found_by_capture():
    model = build("llama")
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda module, args, output: output + 1)
    found = failures(model)
    assert found.keys() == {"capture"} and found["capture"].startswith("model.layers.0.self_attn.q_proj")


class Whispering(nn.Module):
    """A norm that adds what the last block left aside: the block acts past its own output."""

    def __init__(self, norm: nn.Module, aside: dict) -> None:
        super().__init__()
        self.norm, self.aside = norm, aside

    def forward(self, x):
        return self.norm(x + self.aside.pop("x", 0))


def test_what_passes_by_a_blocks_output_is_found():
    model, aside = build("llama"), {}
    last = model.model.layers[-1]
    own = last.forward

    def leaking(hidden_states, *args, **kwargs):
        aside["x"] = 10 * hidden_states
        return own(hidden_states, *args, **kwargs)

    last.forward = leaking
    model.model.norm = Whispering(model.model.norm, aside)
    found = failures(model)
    assert found.keys() == {"capture", "skipping"}
    assert "network built without it" in found["skipping"]


def test_a_tokenizer_larger_than_the_embeddings_is_found():
    tokenizer = byte_level()
    found = failures(build("llama"), tokenizer=tokenizer)
    assert found.keys() == {"tokenizer"} and "96 rows" in found["tokenizer"]


def test_gates_that_pay_no_heed_are_found(monkeypatch):
    real = undo.gated
    monkeypatch.setattr(undo, "gated", lambda model, deltas, gates: real(model, deltas, deltas.uniform(0.5)))
    assert failures(build("llama")).keys() == {"gates"}


def test_a_hook_that_stays_is_found(monkeypatch):
    def leaving(model, layers, by):
        model.register_forward_hook(lambda module, args, output: None)
        return really_scaled(model, layers, by)

    monkeypatch.setattr(undo, "scaled", leaving)
    found = failures(build("llama"))
    assert found.keys() == {"undo", LEFT_AS_FOUND}
    assert found["undo"] == "after scaling a block was over, this had changed: hooks of the model"


def test_a_list_that_lacks_a_layer_is_found(monkeypatch):
    real = probe.layers_of
    monkeypatch.setattr(structure, "layers_of", lambda *asked, **more: real(*asked, **more)[1:])
    found = failures(build("llama"), checks=CHECKS[:1])
    assert "model.layers.0.self_attn.q_proj.weight is in no linear layer" in found["names"]
    assert "model.layers.0 has 7 weights but 6 layers" in found["names"]
