import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from keylayers.errors import BadInput, Diverged
from keylayers.measures.loss import example_losses
from keylayers.measures.objective import finite, image_loss, language_loss, predictions, supervised
from tests import tiny_models

IN_PLACE = ("t5", "bert")


def batch_of(name: str) -> dict[str, torch.Tensor]:
    batch = tiny_models.inputs(name)
    batch["labels"][0, 3:6] = -100
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return batch


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmoe", "gemma2", *IN_PLACE])
def test_agrees_with_the_models_own_loss(name: str) -> None:
    """Hugging Face's own mean loss, without a router's auxiliary term, times the number of supervised places."""
    model, batch = tiny_models.build(name), batch_of(name)
    with torch.no_grad():
        summed, count = language_loss(model, batch)
        own = float(model(**batch).loss)
    shift = 0 if name in IN_PLACE else 1
    assert count == int((batch["labels"][:, shift:] != -100).sum())
    assert float(summed) / count == pytest.approx(own, abs=2e-6)


@pytest.mark.parametrize("name", ["llama", *IN_PLACE])
def test_equals_a_written_out_sum_and_the_loss_of_each_example(name: str) -> None:
    model, batch = tiny_models.build(name), batch_of(name)
    with torch.no_grad():
        logits, targets = predictions(model, batch)
        summed, count = language_loss(model, batch)
    rows = [
        -sum(float(logits[r, t].double().log_softmax(0)[label]) for t, label in enumerate(row) if label != -100)
        for r, row in enumerate(targets.tolist())
    ]
    assert float(summed) == pytest.approx(sum(rows), rel=1e-6)
    losses = example_losses(model, [batch])
    np.testing.assert_allclose(losses.nats, rows, rtol=1e-5)
    assert losses.tokens.sum() == count


def test_causal_models_predict_the_next_place_and_the_others_their_own() -> None:
    for name, places in (("llama", 11), ("t5", 12), ("bert", 12)):
        logits, targets = predictions(tiny_models.build(name), batch_of(name))
        assert logits.shape[:2] == targets.shape == (2, places)


def test_gradients_are_those_of_the_mean_times_the_count() -> None:
    model, batch = tiny_models.build("llama"), batch_of("llama")
    summed, count = language_loss(model, batch)
    summed.backward()
    own = copy.deepcopy(model)
    own.zero_grad()
    own(**batch).loss.backward()
    for mine, theirs in zip(model.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(mine.grad / count, theirs.grad, rtol=1e-4, atol=1e-6)


def test_the_precision_is_single_at_least() -> None:
    batch = batch_of("gpt2")
    exact, _ = language_loss(tiny_models.build("gpt2").double(), batch)
    single, _ = language_loss(tiny_models.build("gpt2"), batch)
    assert exact.dtype == single.dtype == torch.float64
    assert 0 < abs(exact.item() - single.item()) / exact.item() < 1e-6
    half, _ = language_loss(tiny_models.build("gpt2").bfloat16(), batch)
    assert math.isfinite(half.item()) and half.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("name", tiny_models.VISION)
def test_image_loss_is_the_cross_entropy_of_classes(name: str) -> None:
    model = tiny_models.build(name)
    batch = {**tiny_models.inputs(name, batch=3), "labels": torch.tensor([0, 4, 2])}
    with torch.no_grad():
        summed, count = image_loss(model, batch)
        out = model(**tiny_models.inputs(name, batch=3))
    logits = (out if isinstance(out, torch.Tensor) else out.logits).double()
    expected = -sum(float(row.log_softmax(0)[label]) for row, label in zip(logits, (0, 4, 2), strict=True))
    assert count == 3 and float(summed) == pytest.approx(expected, rel=1e-6)


def test_the_batch_follows_the_model() -> None:
    """A batch on the processor is taken to wherever the model is; here, the device that stores nothing."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(96, 96, device="meta")

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.table(input_ids)

    logits, targets = predictions(Bare(), batch_of("llama"))
    assert logits.device.type == targets.device.type == "meta" and logits.shape == (2, 11, 96)


def test_wrapped_models_are_seen_through() -> None:
    model, batch = tiny_models.build("bert"), batch_of("bert")
    with torch.no_grad():
        wrapped, count = language_loss(nn.DataParallel(model), batch)
        plain, expected = language_loss(model, batch)
    assert count == expected and float(wrapped) == float(plain)


def test_nothing_supervised_counts_as_nothing_and_is_refused_in_all() -> None:
    batch = {**batch_of("llama"), "labels": torch.full((2, 12), -100)}
    summed, count = language_loss(tiny_models.build("llama"), batch)
    assert float(summed) == 0 and count == 0
    with pytest.raises(BadInput, match=r"no supervised token: every label is masked; give records whose completions"):
        supervised(count)
    assert supervised(3) == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named(value: float) -> None:
    with pytest.raises(Diverged, match=rf"the loss of batch 3 is {value}; .*lower the learning rate"):
        finite(value, "the loss of batch 3")
    assert finite(1.5, "x") == 1.5
