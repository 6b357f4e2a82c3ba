"""No network sees the answer that it is asked for: later tokens of an answer do not move the logits of earlier ones."""

from typing import Any

import pytest
import torch
import transformers as hf

from keylayers.data.batches import collate
from keylayers.data.fitting import fitted
from keylayers.data.records import Record, Turn
from keylayers.data.tokenisation import IGNORED, Examples, tokenise, tokenise_prompts
from keylayers.errors import BadInput, KeylayersError
from keylayers.measures.accuracy import exact_match, greedy_matches
from keylayers.measures.causality import require_causal
from keylayers.measures.objective import language_loss, predictions
from keylayers.models.families import context_of, family_of, has_language_head
from keylayers.training.trainer import TrainSettings, train
from tests import tiny_models
from tests.data.bpe import byte_level

ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = {"vocab_size": 96, "max_position_embeddings": 64, **ENCODER}


class Letters:
    """A tokenizer of one token per letter, with a mask and a closing mark."""

    bos_token_id, eos_token_id, pad_token_id, mask_token_id = None, 2, 0, 5
    bos_token, eos_token, chat_template, all_special_tokens, model_max_length = None, "", None, (), 64

    def __call__(self, texts: Any, add_special_tokens: bool = True, verbose: bool = False) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": self([texts], add_special_tokens)["input_ids"][0]}
        end = [3] if add_special_tokens else []
        return {"input_ids": [[*(6 + ord(letter) % 80 for letter in text), *end] for text in texts]}

    def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, ids))


def asked(answer: str) -> Record:
    return Record((Turn("user", "say"), Turn("assistant", answer)))


def first_logits(model: Any, answer: str) -> torch.Tensor:
    examples = fitted(tokenise([asked(answer)], Letters()), family_of(model), Letters())
    with torch.no_grad():
        logits, targets = predictions(model, collate(examples))
    return logits[targets != IGNORED][0]


def assert_blind(model: Any) -> None:
    require_causal(model, [range(6, 20)]) if family_of(model) == "causal" else None
    torch.testing.assert_close(first_logits(model, "abcdef"), first_logits(model, "abcdxy"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", tiny_models.LANGUAGE)
def test_later_answer_tokens_do_not_move_earlier_logits(name: str) -> None:
    assert_blind(tiny_models.build(name))


SEEING = {
    "bert as a language model": lambda: hf.BertLMHeadModel(hf.BertConfig(**SMALL)),
    "xlm": lambda: hf.XLMWithLMHeadModel(hf.XLMConfig(n_words=96, emb_dim=32, n_layers=2, n_heads=4)),
    "gemma with attention both ways": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**SMALL, head_dim=8, num_key_value_heads=2, use_bidirectional_attention=True)
    ),
}


@pytest.mark.parametrize("build", SEEING.values(), ids=SEEING)
def test_networks_that_see_all_places_are_refused_by_name(build: Any) -> None:
    model = build().eval()
    with pytest.raises(BadInput, match=rf"{type(model).__name__} attends to all places"):
        first_logits(model, "abc")
    model.config.is_encoder_decoder = False
    with pytest.raises(BadInput, match="sees later tokens when it predicts earlier ones"):
        require_causal(model, [range(6, 20)])


def test_decoders_of_encoder_families_are_causal() -> None:
    assert_blind(hf.BertLMHeadModel(hf.BertConfig(**SMALL, is_decoder=True)).eval())
    assert family_of(tiny_models.build("gpt-neox")) == "causal"


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_batches_of_the_causal_convention_are_refused_by_other_families(name: str) -> None:
    model, examples = tiny_models.build(name), tokenise([asked("abc")], Letters())
    with pytest.raises(BadInput, match=r"fitting\.fitted"):
        predictions(model, collate(examples))
    with pytest.raises(BadInput, match=r"fitting\.fitted"):
        train(model, examples, TrainSettings(steps=1))


HEADLESS = ("LlamaModel", "LlamaForSequenceClassification", "LlamaForTokenClassification")


@pytest.mark.parametrize("name", HEADLESS)
def test_networks_without_a_language_head_are_refused_by_name(name: str) -> None:
    model = getattr(hf, name)(hf.LlamaConfig(**SMALL, pad_token_id=0)).eval()
    examples = tokenise([asked("abc")], Letters())
    assert not has_language_head(model)
    for look in (lambda: predictions(model, collate(examples)), lambda: train(model, examples, TrainSettings(steps=1))):
        with pytest.raises(KeylayersError, match=rf"{name} gives no logits .*language head"):
            look()


def test_an_encoder_reads_the_prompt_with_its_mark_and_a_decoder_writes_the_last_answer() -> None:
    talk = Record((*asked("ab").turns, Turn("user", "go"), Turn("assistant", "cd")))
    whole = tokenise([talk], Letters())
    made = fitted(whole, "encoder-decoder", Letters())
    at = len(whole.input_ids[0]) - 3
    assert made.input_ids[0] == (*whole.input_ids[0][:at], 3) and made.labels[0] == whole.input_ids[0][at:]
    assert made.input_ids[0] == (*tokenise_prompts([talk], Letters())[0], 3)  # what it reads to generate
    batch = collate(fitted(tokenise([talk, asked("abcdefgh")], Letters()), "encoder-decoder", Letters()))
    assert batch["labels"].shape[1] == 9 and batch["input_ids"].shape == batch["attention_mask"].shape
    model = tiny_models.build("t5")
    assert language_loss(model, batch)[1] == 3 + 9
    assert greedy_matches(model, made) == (False,)


def test_a_masked_model_is_asked_for_masks_alone() -> None:
    prompted, text = fitted(tokenise([asked("ab"), Record(text="x" * 40)], Letters()), "masked", Letters()).rows()
    pairs = zip(prompted["input_ids"], prompted["labels"], strict=True)
    assert [token for token, label in pairs if label != IGNORED] == [5, 5, 5]
    assert prompted["input_ids"][:3] == Letters()("say", False)["input_ids"] and prompted["input_ids"][-1] == 3
    hidden = [place for place, label in enumerate(text["labels"]) if label != IGNORED]
    assert len(hidden) == 6 and all(text["input_ids"][place] == 5 for place in hidden)
    bare = byte_level()
    with pytest.raises(BadInput, match="no mask token"):
        fitted(tokenise([asked("ab")], bare), "masked", bare)
    with pytest.raises(BadInput, match="writes no text"):
        exact_match(tiny_models.build("bert"), Letters(), [asked("ab")])


def test_what_an_encoder_decoder_learns_it_generates() -> None:
    torch.manual_seed(0)
    model, records = tiny_models.build("t5"), [asked("abc")]
    examples: Examples = fitted(tokenise(records, Letters()), "encoder-decoder", Letters())
    train(model, examples, TrainSettings(steps=40, batch_size=1, learning_rate=3e-2))
    answer = " ".join(map(str, Letters()("abc", False)["input_ids"]))
    found = exact_match(model, Letters(), records, max_new_tokens=6, matches=lambda given, _: given == answer)
    assert found.correct == greedy_matches(model, examples) == (True,)


def test_positions_behind_the_one_for_padding() -> None:
    assert context_of(hf.RobertaForMaskedLM(hf.RobertaConfig(**SMALL))) == 62
    assert context_of(tiny_models.build("bert")) == context_of(tiny_models.build("gpt2")) == 64
    assert context_of(torch.nn.Linear(2, 2)) is None
