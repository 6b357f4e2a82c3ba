from typing import Any

import pytest
import torch
import transformers as hf

from keylayers.data.batches import collate
from keylayers.data.records import Record, Turn
from keylayers.data.tokenisation import tokenise
from keylayers.errors import BadInput
from keylayers.measures.accuracy import Accuracy, exact_match, greedy_matches, same_text
from tests.data.bpe import CHATML, byte_level

PAIRS = [
    ("Is the sky blue?", "Yes, the sky is blue."),
    ("What is two plus two?", "Four."),
    ("Who?", "Paris, of course."),
]
RECORDS = [Record((Turn("user", q), Turn("assistant", a)), origin=f"a:{i}") for i, (q, a) in enumerate(PAIRS)]


def model_for(tokenizer: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    return hf.LlamaForCausalLM(config)


@pytest.fixture(scope="module", params=[None, CHATML], ids=["plain", "chat"])
def taught(request: Any) -> tuple[Any, Any]:
    """A tokenizer and a model that learnt the first two answers by heart."""
    tokenizer = byte_level(request.param)
    model = model_for(tokenizer)
    batch = collate(tokenise(RECORDS[:2], tokenizer))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(50):
        model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return tokenizer, model


def test_what_was_learnt_is_answered_and_stops(taught: tuple[Any, Any]) -> None:
    tokenizer, model = taught
    accuracy = exact_match(model, tokenizer, RECORDS, max_new_tokens=24)
    assert accuracy.correct == (True, True, False)
    assert accuracy.answers[:2] == (PAIRS[0][1], PAIRS[1][1])
    assert accuracy.mean == pytest.approx(2 / 3)
    assert accuracy.interval().low < 2 / 3 < accuracy.interval().high


def test_one_forward_pass_tells_what_decoding_writes(taught: tuple[Any, Any]) -> None:
    tokenizer, model = taught
    examples = tokenise(RECORDS, tokenizer)
    told = greedy_matches(model, examples, batch_size=2)
    assert told == exact_match(model, tokenizer, RECORDS, max_new_tokens=32).correct == (True, True, False)


def test_batches_padded_on_the_left_answer_as_prompts_alone_do() -> None:
    model = model_for(byte_level()).double()  # untaught, so that every token is a close call
    alone = exact_match(model, byte_level(), RECORDS, batch_size=1, max_new_tokens=12)
    together = exact_match(model, byte_level(), RECORDS, batch_size=3, max_new_tokens=12)
    assert alone.answers == together.answers and len(set(alone.answers)) > 1


def test_model_is_left_in_its_mode(taught: tuple[Any, Any]) -> None:
    tokenizer, model = taught
    model.train()
    exact_match(model, tokenizer, RECORDS[:1], max_new_tokens=2)
    assert model.training


def test_sampling_settings_of_the_model_are_not_used(taught: tuple[Any, Any]) -> None:
    tokenizer, model = taught
    before = model.generation_config
    model.generation_config = hf.GenerationConfig(
        do_sample=True, temperature=50.0, num_beams=2, max_length=5, eos_token_id=tokenizer.eos_token_id
    )
    try:
        assert exact_match(model, tokenizer, RECORDS[:2], max_new_tokens=24).mean == 1
    finally:
        model.generation_config = before


def test_what_counts_as_right_can_be_given(taught: tuple[Any, Any]) -> None:
    tokenizer, model = taught
    accuracy = exact_match(model, tokenizer, RECORDS, max_new_tokens=4, matches=lambda answer, expected: True)
    assert accuracy.correct == (True, True, True)


def test_spacing_does_not_count() -> None:
    assert same_text(" a  b\n", "a b") and not same_text("ab", "a b") and not same_text("A", "a")


def test_share_of_right_answers() -> None:
    assert Accuracy((True, False, True, True), ("",) * 4).mean == 0.75


def test_prompts_without_room_and_records_without_prompts_are_named() -> None:
    model = model_for(byte_level())
    with pytest.raises(BadInput, match=r"1 of 3 prompts leave no room for 100 new tokens, the first a:1 "):
        long = Record((Turn("user", "Why? " * 20), Turn("assistant", "b")), origin="a:1")
        exact_match(model, byte_level(), [RECORDS[2], long, RECORDS[2]], max_new_tokens=100)
    with pytest.raises(BadInput, match="a:9 is a plain text"):
        exact_match(model, byte_level(), [Record(text="t", origin="a:9")])
    with pytest.raises(BadInput, match="no record"):
        exact_match(model, byte_level(), [])
