"""What commands can do with a model: each verdict against the command itself."""

import pytest
import torch

from keylayers import criteria, exports
from keylayers.actions.freezing import selected_parameters
from keylayers.doctor import capabilities as module
from keylayers.doctor.capabilities import Ability, abilities
from keylayers.doctor.probe import CheckResult
from keylayers.doctor.request import DoctorRequest, admit
from keylayers.errors import BadInput, BadSelection
from keylayers.exports.target import export
from keylayers.inputs.text import Inputs
from keylayers.models.loading import LoadedModel, load_model
from keylayers.scores import select
from tests.layers.helpers import full_state, same_state
from tests.tiny_models import build


def found(loaded: LoadedModel, findings: dict[str, CheckResult] | None = None) -> dict[str, Ability]:
    given = admit(DoctorRequest(Inputs("it"), seq=8), loaded)
    given.patient.findings.update(findings or {})
    with torch.random.fork_rng():
        return {one.command: one for one in abilities(given.patient, given.layers, given.selections[0])}


@pytest.mark.parametrize("name", ["llama", "olmoe", "phi3", "t5", "vit", "cifar-resnet"])
def test_every_command_has_a_verdict_and_the_model_stays(name):
    model = build(name)
    before = full_state(model)
    verdicts = found(LoadedModel(model, name))
    assert same_state(before, full_state(model))
    commands = {"layers", "revert", *(f"score {one}" for one in criteria.CRITERIA)}
    commands |= {f"tune --method {one}" for one in ("lora", "qlora", "full")}
    assert verdicts.keys() == commands | {f"export --to {one}" for one in exports.TARGETS}
    assert verdicts["tune --method full"].verdict == "partly"  # there is no tokenizer
    assert all(one.verdict != "no" or one.why for one in verdicts.values())


def test_the_bundled_model_can_be_scored_tuned_reverted_and_exported():
    verdicts = found(load_model("bundled:llama"))
    for command in ("score learned_mask", "tune --method lora", "tune --method full", "revert", "export --to peft"):
        assert verdicts[command].verdict == "yes", command
    assert verdicts["tune --method lora"].why == "85 of 85 layers"
    assert "85 linear" in verdicts["layers"].why


def test_export_verdicts_are_exports_own():
    model = build("olmoe")
    verdicts = found(LoadedModel(model, "it"))
    selection = admit(DoctorRequest(Inputs("it"), seq=8), LoadedModel(model, "it")).selections[0]
    for target in exports.TARGETS:
        try:
            export(model, selection, target)
        except BadSelection as error:
            assert verdicts[f"export --to {target}"].verdict == "no"
            assert str(error)[:60] in verdicts[f"export --to {target}"].why
        else:
            assert verdicts[f"export --to {target}"].verdict == "yes"


def test_a_shared_weight_cannot_train_in_full_and_is_named():
    model = build("llama")
    layers = model.model.layers
    layers[2].mlp.down_proj = layers[1].mlp.down_proj
    verdict = found(LoadedModel(model, "it"))["tune --method full"]
    assert verdict.verdict == "partly" and verdict.why.startswith("20 of 21 layers; not model.layers.1.mlp.down_proj: ")
    assert "is tied to" in verdict.why
    with pytest.raises(BadSelection):
        selected_parameters(model, select(admit(DoctorRequest(Inputs("it")), LoadedModel(model, "it")).layers, "all"))


def test_failed_gates_forbid_what_rests_on_them():
    loaded = load_model("bundled:llama")
    slope = found(loaded, {"gradient is right": CheckResult("gradient is right", "fail", "", "")})
    assert {name for name, one in slope.items() if one.verdict == "no" and name.startswith("score")} == {
        f"score {name}"
        for name in criteria.CRITERIA
        if criteria.get(name).work((), criteria.get(name).settings(), 1).backwards
    }
    assert slope["score path_integral"].why == "the gate 'gradient is right' failed"
    noise = found(loaded, {"repeatable": CheckResult("repeatable", "fail", "", "")})
    assert noise["score leave_one_out"].verdict == "no" and noise["score delta_norm"].verdict == "yes"


def test_a_target_that_breaks_off_hides_no_other(monkeypatch):
    def breaking(model, selection, name):
        if name == "trl":
            raise KeyError("surprise")
        return export(model, selection, name)

    monkeypatch.setattr(module, "export", breaking)
    verdicts = found(LoadedModel(build("llama"), "it"))
    assert verdicts["export --to trl"].verdict == "no" and "KeyError: 'surprise'" in verdicts["export --to trl"].why
    assert verdicts["export --to peft"].verdict == "yes"


def test_layers_that_peft_refuses_are_named(monkeypatch):
    real = module.attached

    def choosy(model, layers, settings):
        if any(layer.kind == "mlp.up_proj" for layer in layers):
            raise BadInput("no up_proj today")
        return real(model, layers, settings)

    monkeypatch.setattr(module, "attached", choosy)
    verdict = found(LoadedModel(build("llama"), "it"))["tune --method lora"]
    assert verdict.verdict == "partly"
    assert verdict.why.startswith("19 of 22 layers; not model.layers.0.mlp.up_proj: no up_proj today, model.layers.1")
