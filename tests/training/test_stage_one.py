"""Stage 1: the deltas of a LoRA run, grouped as asked, from a model that is left as it was."""

import pytest
import torch

from keylayers.layers import named_layers
from keylayers.layers.gating import gated
from keylayers.models import deltas_of
from keylayers.training.adapters import LoraSettings, attach_lora
from keylayers.training.stage_one import learn_deltas
from keylayers.training.train import TrainSettings, train
from tests.tiny_models import build, inputs
from tests.training.small import examples, same, weights

SHORT = TrainSettings(steps=3, batch_size=4, learning_rate=1e-2)
LORA = LoraSettings(rank=2)


def test_gates_of_one_give_the_adapted_model_and_the_base_is_left_as_it_was():
    model = build("llama")
    layers, before = named_layers(model), weights(model)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    deltas, log = learn_deltas(model, layers, examples(), lora=LORA, settings=SHORT)
    assert same(before, weights(model)) and not hasattr(model, "peft_config")
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert len(log.losses) == 3 and deltas.low_rank and not deltas.remainder
    assert (deltas.norms() > 0).all()
    adapted = attach_lora(build("llama"), layers, LORA, seed=0)
    train(adapted, examples(), SHORT)
    with torch.no_grad(), gated(model, deltas, deltas.uniform(1.0)):
        ours = model(**inputs("llama")).logits
    with torch.no_grad():
        assert torch.allclose(ours, adapted(**inputs("llama")).logits, atol=1e-6)


@pytest.mark.parametrize(("name", "granularity"), [("llama", "block"), ("olmoe", "expert")])
def test_deltas_are_grouped_by_the_scored_layers(name, granularity):
    model = build(name)
    scored = named_layers(model, granularity)
    deltas, _ = learn_deltas(model, named_layers(model), examples(), scored=scored, lora=LORA, settings=SHORT)
    assert deltas.layers == scored
    fine, _ = learn_deltas(model, named_layers(model), examples(), lora=LORA, settings=SHORT)
    inside = [i for i, layer in enumerate(fine.layers) if granularity == "block" or "experts" in layer.name]
    inside = [i for i in inside if fine.layers[i].block is not None]
    assert torch.isclose(deltas.norms().pow(2).sum(), fine.norms()[inside].pow(2).sum(), rtol=1e-5)


def test_the_stored_adapter_gives_the_same_deltas(tmp_path):
    model = build("llama")
    layers = named_layers(model)
    learnt, _ = learn_deltas(model, layers, examples(), lora=LORA, settings=SHORT, folder=tmp_path)
    stored = deltas_of(model, tmp_path / "adapter", layers)
    for ours, theirs in zip(learnt.changes, stored.changes, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name].dense(), theirs[name].dense()) for name in ours)


def test_an_error_in_training_leaves_the_model_without_adapters():
    model = build("llama")
    before = weights(model)

    def fail(step: int, steps: int, loss: float) -> None:
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        learn_deltas(model, named_layers(model), examples(), lora=LORA, settings=SHORT, report=fail)
    assert same(before, weights(model)) and not model.training
