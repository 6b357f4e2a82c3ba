"""The doctor's gates: every architecture passes and is left as it was, whatever happens in between."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn

from keylayers.doctor import undo
from keylayers.doctor.examination import CHECKS, LEFT_AS_FOUND, Check, examine
from keylayers.doctor.probe import CheckResult, make_patient, spread
from keylayers.layers.intervene import scaled as really_scaled
from keylayers.models.loading import LoadedModel, load_model, load_shape
from tests.layers.helpers import full_state, same_state, with_lora
from tests.tiny_models import ALL, CAUSAL, build

MOST = 3


def outcomes(model: nn.Module, checks=CHECKS, tokenizer=None) -> dict[str, CheckResult]:
    return {
        check.name: check for check in examine(make_patient(LoadedModel(model, "it", tokenizer), most=MOST), checks)
    }


def failures(model: nn.Module, **more) -> dict[str, str]:
    return {name: check.detail for name, check in outcomes(model, **more).items() if check.status == "fail"}


def untidy(model: nn.Module) -> nn.Module:
    """The model in a state that a careless visitor would tidy up."""
    model.train()
    next(model.children()).eval()
    parameters = list(model.parameters())
    parameters[-1].requires_grad_(False)
    parameters[0].grad = torch.ones_like(parameters[0])
    model.register_forward_hook(lambda module, args, output: None)
    return model


def constant(module, args, output):
    return torch.ones_like(output)


@pytest.mark.parametrize("name", ALL)
def test_every_architecture_passes_and_is_left_as_it_was(name):
    model = untidy(build(name))
    before = full_state(model)
    found = outcomes(model)
    assert same_state(before, full_state(model))
    skipped = {"tokenizer"} | (set() if name in CAUSAL else {"padding"})
    assert {gate: check.detail for gate, check in found.items() if check.status == "fail"} == {}
    assert {gate for gate, check in found.items() if check.status == "skip"} == skipped
    assert list(found) == [*(check.name for check in CHECKS), LEFT_AS_FOUND]
    assert all(check.remedy == "" for check in found.values())


def test_the_bundled_model_passes_with_its_tokenizer():
    patient = make_patient(load_model("bundled:llama"), most=3)
    found = list(examine(patient))
    assert {check.status for check in found} == {"pass"}, [c for c in found if c.status != "pass"]


def test_a_gate_that_breaks_off_stops_no_other_and_changes_nothing():
    def meddling(patient):
        torch.rand(3)
        patient.model.train()
        raise RuntimeError("in the middle")

    model = untidy(build("llama"))
    before = full_state(model)
    found = outcomes(model, checks=(Check("meddling", meddling), *CHECKS[:2]))
    assert same_state(before, full_state(model))
    assert {name: check.status for name, check in found.items()} == {
        "meddling": "fail", "names": "pass", "tied weights": "pass", LEFT_AS_FOUND: "pass"}  # fmt: skip
    assert "RuntimeError: in the middle" in found["meddling"].detail


class Stopping(nn.Module):
    """A norm that fails at one of its calls."""

    def __init__(self, norm: nn.Module, at: int) -> None:
        super().__init__()
        self.norm, self.at, self.calls = norm, at, 0

    def forward(self, x):
        self.calls += 1
        if self.calls == self.at:
            raise ValueError("stopped")
        return self.norm(x)


@pytest.mark.parametrize("at", [1, 4, 6, 9, 14, 18, 23, 28, 33, 40])
def test_a_model_that_fails_in_the_middle_of_a_gate_is_left_as_it_was(at):
    model = untidy(build("llama"))
    model.model.norm = Stopping(model.model.norm, at)
    before = full_state(model)
    found = failures(model)
    assert len(found) == 1 and "ValueError: stopped" in next(iter(found.values()))
    assert same_state(before, full_state(model))


def test_a_model_without_weights_is_read_but_not_run():
    found = outcomes(load_shape("bundled:llama"))
    assert {check.status for check in found.values()} == {"pass", "skip"}
    assert found["names"].status == "pass" and "meta device" in found["undo"].detail


class Sum(nn.Module):
    """Takes what nobody can guess."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 4)

    def forward(self, a, b):
        return self.inner(a + b)


def test_a_network_that_says_nothing_of_its_input_is_not_run():
    found = outcomes(Sum())
    assert {check.status for check in found.values()} == {"pass", "skip"}
    assert "no input could be made" in found["repeatable"].detail


def test_half_precision_is_told_from_faults():
    model = build("llama").to(torch.bfloat16)
    found = outcomes(model)
    assert {name for name, check in found.items() if check.status == "fail"} == set()
    assert found["gradient is right"].status == "skip"
    broken = copy.deepcopy(model)
    broken.model.layers[1].register_forward_hook(constant)
    assert failures(broken).keys() == {"every part acts"}


@pytest.mark.parametrize("wrap", [with_lora, nn.DataParallel])
def test_wrapped_models_pass_and_keep_their_wrapper(wrap):
    model = wrap(build("llama"))
    before = full_state(model)
    assert failures(model) == {}
    assert same_state(before, full_state(model))
    told = outcomes(model)["undo"].detail
    assert ("not possible here: LoRA: the model carries LoRA already" in told) == (wrap is with_lora)


def test_four_bit_weights_are_run_but_take_no_delta(tmp_path):
    pytest.importorskip("bitsandbytes")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=96, **sizes)).save_pretrained(tmp_path)
    found = {check.name: check for check in examine(make_patient(load_model(str(tmp_path), four_bit=True), most=MOST))}
    assert {name: check.detail for name, check in found.items() if check.status == "fail"} == {}
    assert "2 blocks and 15 layers" in found["every part acts"].detail
    assert "1 of 1 linear layers" in found["capture"].detail  # only the head is a plain one


def test_large_models_are_watched_by_their_write_counters(monkeypatch):
    monkeypatch.setattr(undo, "HASHED", 0)
    assert outcomes(build("llama"))["undo"].detail.startswith("not written to after scaling a block")

    def writing(model, layers, by):
        with torch.no_grad():
            model.lm_head.weight.mul_(1)  # the same bits, but written
        return really_scaled(model, layers, by)

    monkeypatch.setattr(undo, "scaled", writing)
    assert failures(build("llama")) == {
        "undo": "after scaling a block was over, this had changed: weights of lm_head.weight"
    }


def test_spread_keeps_both_ends():
    assert spread(range(10), 3) == (0, 4, 9) and spread(range(2), 5) == (0, 1) and spread(range(9), 1) == (0,)
