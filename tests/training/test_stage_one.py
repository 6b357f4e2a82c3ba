"""Stage 1: the deltas of a LoRA run, grouped as asked, from a model that is left as it was."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from keylayers.layers import named_layers
from keylayers.layers.gating import gated
from keylayers.models import deltas_of
from keylayers.training.adapters import LoraSettings, attach_lora
from keylayers.training.stage_one import learn_deltas, learn_until
from keylayers.training.trainer import TrainSettings, train
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


LONG = TrainSettings(steps=8, batch_size=4, learning_rate=1e-2, save_every=3)
LOOKS = (2, 4, 7, 8)  # in the middle of an epoch of 3 steps, and past a saved state


def until(folder, look, answered=None, **changes):
    model = build("llama")
    return learn_until(
        model,
        named_layers(model),
        examples(),
        steps=LOOKS,
        look=look,
        answered=answered or {},
        folder=folder,
        settings=LONG,
        lora=LORA,
        **changes,
    )


@cache
def stopped_at(step):
    model = build("llama")
    return learn_deltas(model, named_layers(model), examples(), lora=LORA, settings=replace(LONG, stop_after=step))


def equal(ours, theirs):
    return all(
        torch.equal(a[name].dense(), b[name].dense())
        for a, b in zip(ours.changes, theirs.changes, strict=True)
        for name in a | b
    )


@pytest.mark.parametrize("stop", LOOKS)
def test_a_training_that_is_looked_at_is_bit_for_bit_the_one_that_is_not(stop, tmp_path):
    seen = []

    def look(step, deltas, log):
        assert len(log.losses) == step
        seen.append((step, deltas))
        return step == stop

    deltas, log, step = until(tmp_path, look)
    assert step == stop and [one for one, _ in seen] == [one for one in LOOKS if one <= stop]
    for one, there in [*seen, (stop, deltas)]:
        expected, alone = stopped_at(one)
        assert equal(there, expected) and log.losses[:one] == alone.losses
    kept = deltas_of(build("llama"), tmp_path / "adapter", named_layers(build("llama")))
    assert equal(kept, deltas)


def test_the_last_step_ends_it_whatever_the_look_says(tmp_path):
    deltas, _, step = until(tmp_path, lambda *_: False)
    assert step == 8 and equal(deltas, stopped_at(8)[0])


def test_a_look_sees_the_base_model_and_what_it_does_to_random_numbers_has_no_effect(tmp_path):
    model = build("llama")
    before = weights(model)

    def look(step, deltas, log):
        assert same(before, weights(model)) and not hasattr(model, "peft_config") and not model.training
        torch.rand(step)
        return step == 4

    deltas, _, _ = learn_until(
        model,
        named_layers(model),
        examples(),
        steps=LOOKS,
        look=look,
        answered={},
        folder=tmp_path,
        settings=LONG,
        lora=replace(LORA, dropout=0.3),
    )
    model = build("llama")
    lora, part = replace(LORA, dropout=0.3), replace(LONG, stop_after=4)
    assert equal(deltas, learn_deltas(model, named_layers(model), examples(), lora=lora, settings=part)[0])


@pytest.mark.parametrize("interrupted", [2, 4, 7])
def test_an_interrupted_look_is_made_again_and_no_other(interrupted, tmp_path):
    answered = {}

    def look(step, deltas, log, stop_here=interrupted):
        if step == stop_here:
            raise RuntimeError("interrupted")
        answered[step] = step == 7
        return answered[step]

    with pytest.raises(RuntimeError, match="interrupted"):
        until(tmp_path, look)
    earlier = dict(answered)
    deltas, _, step = until(tmp_path, lambda *given: look(*given, stop_here=None), earlier)
    assert step == 7 and set(answered) == {2, 4, 7} and equal(deltas, stopped_at(7)[0])


def test_a_run_that_was_told_to_stop_stops_there_again_without_training(tmp_path):
    whole, log, _ = until(tmp_path, lambda step, *_: step == 4)
    again, again_log, step = until(
        tmp_path,
        lambda *_: pytest.fail("looked"),
        {2: False, 4: True},
        report=lambda *_: pytest.fail("trained"),
    )
    assert step == 4 and equal(again, whole) and again_log.losses == log.losses
