"""Bytes kept for the backward pass in closed form; seconds as ratios."""

import time

import pytest
import torch
from torch import nn

from keylayers.training import activations, memory
from keylayers.training.activations import adam_bytes, adam_seconds, kept_for_backward, seconds_of


def chain(*trainable: bool) -> nn.Sequential:
    """Linear maps 8 -> 8 without bias, of which some ask for gradients."""
    layers = [nn.Linear(8, 8, bias=False) for _ in trainable]
    for layer, flag in zip(layers, trainable, strict=True):
        layer.requires_grad_(flag)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("trainable", "kept"),
    [
        ((True, True, True), 3),  # every map keeps its input
        ((False, False, True), 1),  # nothing below the only trainable one
        ((True, False, False), 1),  # frozen maps need their weight alone to pass gradients on
        ((False, False, False), 0),
    ],
)
def test_linear_maps_keep_the_inputs_of_trained_weights_alone(trainable, kept):
    model, x = chain(*trainable), torch.randn(5, 8)
    with kept_for_backward(model) as graph:
        model(x)
    assert graph.bytes == kept * 5 * 8 * 4


def test_a_tensor_that_is_kept_twice_is_counted_once():
    x = torch.randn(7, 3, requires_grad=True)
    with kept_for_backward(nn.Module()) as graph:
        (x * x + x * x).sum()
    assert graph.bytes == 7 * 3 * 4


def test_gradients_still_are_what_they_were():
    model, x = chain(True, True), torch.randn(5, 8)
    model(x).sum().backward()
    wanted = [value.grad.clone() for value in model.parameters()]
    model.zero_grad()
    with kept_for_backward(model):
        loss = model(x).sum()
    loss.backward()
    assert all(torch.equal(value.grad, one) for value, one in zip(model.parameters(), wanted, strict=True))


def test_adam_takes_what_is_said():
    parameters = [nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(3).bfloat16())]
    for value in parameters:
        value.grad = torch.ones_like(value)
    optimiser = torch.optim.AdamW(parameters)
    optimiser.step()
    moments = sum(one[key].nbytes for one in optimiser.state.values() for key in ("exp_avg", "exp_avg_sq"))
    assert adam_bytes(parameters) == (sum(value.grad.nbytes for value in parameters), moments)


def test_an_optimiser_step_is_timed_on_twins(monkeypatch):
    parameters = [torch.ones(50, 50) for _ in range(8)]
    assert adam_seconds(parameters) > 0 and adam_seconds([]) == 0
    assert all(torch.equal(value, torch.ones(50, 50)) for value in parameters)
    stepped = []
    monkeypatch.setattr(activations, "OPTIMISER_CAP", 2 * 50 * 50 * 4)
    monkeypatch.setattr(
        activations, "seconds_of", lambda step: stepped.append(len(step.__self__.param_groups[0]["params"])) or 1.0
    )
    assert adam_seconds(parameters) == pytest.approx(4.0) and stepped == [2]  # two of eight timed, taken times four


def test_long_work_is_timed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(activations, "LONG", 0.01)
    assert seconds_of(lambda: calls.append(time.sleep(0.02))) >= 0.02 and len(calls) == 1
    monkeypatch.setattr(activations, "LONG", 10.0)
    seconds_of(lambda: calls.append(None))
    assert len(calls) == 5


def test_free_memory_is_what_the_system_calls_available(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:   2048 kB\n")
    monkeypatch.setattr(memory, "Path", lambda place: tmp_path / place.rpartition("/")[2])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.free_bytes() == 2048 * 1024
    (tmp_path / "meminfo").unlink()  # another system: its own count of free pages, or nothing
    assert memory.free_bytes() is None or memory.free_bytes() > 0
