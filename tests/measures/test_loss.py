import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from keylayers.data.batches import batches, collate
from keylayers.data.tokenisation import IGNORED, Examples, TruncationReport
from keylayers.errors import BadInput, Diverged
from keylayers.measures import loss
from keylayers.measures.loss import evaluating, example_losses, token_losses

VOCABULARY = 31


class Fixed(nn.Module):
    """Logits that depend on the token alone: row `token` of a table. Its dropout works in training mode only."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.dropout(self.table[input_ids]), loss=torch.tensor(math.nan))


def some(count: int = 9, seed: int = 0) -> Examples:
    random = np.random.default_rng(seed)
    ids = tuple(tuple(map(int, random.integers(0, VOCABULARY, size=random.integers(2, 20)))) for _ in range(count))
    labels = tuple(tuple(t if at >= len(row) // 3 and at else IGNORED for at, t in enumerate(row)) for row in ids)
    origins = tuple(f"a.jsonl:{i + 1}" for i in range(count))
    return Examples(ids, labels, origins, 0, TruncationReport(99, count, 0, 0, 0))


def llama(**settings: Any) -> nn.Module:
    config = hf.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **settings,
    )
    return hf.LlamaForCausalLM(config)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    examples = some()
    losses = example_losses(Fixed(torch.zeros(VOCABULARY, VOCABULARY)), examples)
    assert losses.mean == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert losses.perplexity == pytest.approx(VOCABULARY, rel=1e-5)
    assert losses.tokens.sum() == examples.supervised
    np.testing.assert_allclose(losses.nats, losses.tokens * math.log(VOCABULARY), rtol=1e-6)


def test_loss_is_that_of_the_written_out_sum() -> None:
    """Table row `a` predicts the token after `a`: nats = -sum log softmax(table[ids[t-1]])[labels[t]]."""
    table, examples = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64), some()
    losses = example_losses(Fixed(table), examples)
    expected = [
        -sum(
            float(table[ids[at - 1]].log_softmax(0)[label])
            for at, label in enumerate(labels)
            if at and label != IGNORED
        )
        for ids, labels in zip(examples.input_ids, examples.labels, strict=True)
    ]
    np.testing.assert_allclose(losses.nats, expected, rtol=1e-12)
    assert losses.nats.dtype == np.float64
    assert losses.origins == examples.origins


def test_mean_weighs_tokens_not_examples() -> None:
    losses = loss.ExampleLosses(np.array([1.0, 30.0]), np.array([1, 10]))
    assert losses.mean == 31 / 11


@pytest.mark.parametrize("size", [1, 2, 4, 9])
def test_batch_size_and_padding_do_not_matter(size: int) -> None:
    model, examples = llama(), some()
    reference, other = example_losses(model, examples, batch_size=1), example_losses(model, examples, batch_size=size)
    np.testing.assert_allclose(other.nats / other.tokens, reference.nats / reference.tokens, atol=1e-6, rtol=0)
    assert other.mean == pytest.approx(reference.mean, abs=1e-6)
    padded = collate(examples)
    extra = {"input_ids": 5, "attention_mask": 0, "labels": IGNORED}
    wider = {key: nn.functional.pad(padded[key], (0, 7), value=fill) for key, fill in extra.items()}
    np.testing.assert_allclose(example_losses(model, [wider]).nats, reference.nats, atol=1e-5, rtol=0)


def test_agrees_with_the_models_own_loss() -> None:
    model, examples = llama().eval(), some()
    batch = collate(examples)
    with torch.no_grad():
        own = float(model(**batch).loss)
    assert example_losses(model, examples).mean == pytest.approx(own, abs=1e-6)
    assert example_losses(model, [batch]).mean == pytest.approx(own, abs=1e-6)


def test_batches_give_losses_in_their_order() -> None:
    model, examples = llama(), some()
    made = batches(examples, 4, seed=1)
    together = example_losses(model, made)
    apart = np.concatenate([example_losses(model, [batch]).nats for batch in made])
    np.testing.assert_allclose(together.nats, apart, rtol=1e-6)
    assert sorted(together.tokens) == sorted(example_losses(model, examples).tokens)


def test_wide_vocabularies_are_taken_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, examples = llama(), some()
    whole = example_losses(model, examples)
    seen = list[int]()
    model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    monkeypatch.setattr(loss, "_LOGIT_ELEMENTS", 2 * 19 * VOCABULARY)
    np.testing.assert_allclose(example_losses(model, examples).nats, whole.nats, rtol=1e-5)
    assert max(seen) < 9 and sum(seen) == 9


def test_half_precision_logits_are_summed_in_single() -> None:
    table = torch.randn(VOCABULARY, VOCABULARY).bfloat16()
    exact = example_losses(Fixed(table.double()), some())
    np.testing.assert_allclose(example_losses(Fixed(table), some()).nats, exact.nats, rtol=1e-6)


def test_bare_logits_and_dicts_serve_too() -> None:
    class Bare(Fixed):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
            logits = self.table[input_ids]
            return logits if len(input_ids) > 5 else {"logits": logits}

    table = torch.randn(VOCABULARY, VOCABULARY)
    expected = example_losses(Fixed(table), some()).nats
    for size in (2, 9):
        np.testing.assert_allclose(example_losses(Bare(table), some(), batch_size=size).nats, expected, rtol=1e-6)


def test_token_losses_are_zero_where_nothing_is_supervised() -> None:
    targets = torch.tensor([[4, IGNORED, 5], [IGNORED] * 3])
    losses = token_losses(torch.zeros(2, 3, 8), targets)
    torch.testing.assert_close(losses, math.log(8) * torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))


def test_training_flags_gradients_and_random_numbers_are_left_alone() -> None:
    model = Fixed(torch.zeros(VOCABULARY, VOCABULARY)).train()
    model.dropout.eval()  # a user's own choice
    state = torch.get_rng_state()
    first = example_losses(model, some())
    assert (model.training, model.dropout.training) == (True, False)
    assert model.table.grad is None and torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.nats, example_losses(model, some()).nats)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.training
        raise ZeroDivisionError
    assert (model.training, model.dropout.training) == (True, False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_batch_and_record(value: float) -> None:
    table = torch.zeros(VOCABULARY, VOCABULARY)
    table[30] = value
    ids = ((1, 2, 3), (4, 30, 5, 6), (7, 8, 9, 10, 11))  # by length, one per batch: batch 1 goes wrong
    examples = Examples(ids, ids, ("a:1", "a:2", "a:3"), 0, TruncationReport(9, 3, 0, 0, 0))
    model = Fixed(table).train()
    with pytest.raises(Diverged, match=r"in batch 1, first at record a:2 .*smaller learning rate"):
        example_losses(model, examples, batch_size=1)
    assert model.training


def test_nothing_supervised_is_refused() -> None:
    ids = ((1, 2), (3, 4))
    examples = Examples(ids, ((IGNORED,) * 2,) * 2, ("a", "b"), 0, TruncationReport(9, 2, 0, 0, 0))
    model = Fixed(torch.zeros(VOCABULARY, VOCABULARY))
    with pytest.raises(BadInput, match="no supervised token"):
        example_losses(model, examples)
    with pytest.raises(BadInput, match="no supervised token"):
        example_losses(model, [])


def test_an_example_without_supervised_tokens_costs_nothing() -> None:
    ids = ((1, 2), (3, 4))
    examples = Examples(ids, ((IGNORED,) * 2, (IGNORED, 4)), ("a", "b"), 0, TruncationReport(9, 2, 0, 0, 0))
    losses = example_losses(Fixed(torch.zeros(VOCABULARY, VOCABULARY)), examples)
    assert losses.tokens.tolist() == [0, 1] and losses.nats[0] == 0
