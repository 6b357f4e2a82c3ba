from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.data.records import Record, Records, Turn
from keylayers.data.tokenisation import IGNORED, default_max_length, padding_id, tokenise, tokenise_prompts
from keylayers.errors import BadInput
from tests.data.bpe import CHATML, INSTRUCT, byte_level, merging

ASKED = Record((Turn("user", "What is two plus two?"), Turn("assistant", "Four, of course.")), origin="a.jsonl:1")
TALK = Record((Turn("user", "Is it?"), Turn("assistant", "Yes."), Turn("user", "Why?"), Turn("assistant", "Paris")))


def supervised(tokenizer: Any, record: Record, **settings: Any) -> tuple[list[int], list[int]]:
    """The tokens before the first supervised one, and the supervised ones."""
    examples = tokenise([record], tokenizer, **settings)
    ids, labels = examples.input_ids[0], examples.labels[0]
    assert all(label in (token, IGNORED) for token, label in zip(ids, labels, strict=True))
    first = next(at for at, label in enumerate(labels) if label != IGNORED)
    return list(ids[:first]), [label for label in labels if label != IGNORED]


@pytest.mark.parametrize("tokenizer", [byte_level(), merging()], ids=["byte_level", "merging"])
def test_labels_are_the_completion_and_the_stop_token_exactly(tokenizer: Any) -> None:
    before, learnt = supervised(tokenizer, ASKED)
    assert learnt[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(learnt[:-1]).strip() == "Four, of course."
    assert tokenizer.decode(before, skip_special_tokens=True) == "What is two plus two?\n\n"
    assert before == tokenizer("What is two plus two?\n\n")["input_ids"]  # what generation will be given


def test_the_tokenizers_would_merge_or_cut_otherwise_across_the_boundary() -> None:
    """Else the tests of the boundary would test nothing."""
    joined = "What is two plus two?\n\nFour, of course."
    for tokenizer in (byte_level(), merging()):
        prompt = tokenizer("What is two plus two?\n\n")["input_ids"]
        assert tokenizer(joined)["input_ids"][: len(prompt)] != prompt


def test_a_tokenizer_that_puts_a_space_before_texts_puts_none_before_completions() -> None:
    _, learnt = supervised(merging(), ASKED)
    assert "▁" not in merging().convert_ids_to_tokens(learnt)[0]


def test_beginning_of_sequence_is_there_once_where_the_tokenizer_adds_one() -> None:
    bos = merging().bos_token_id
    for tokenizer, record in ((merging(), ASKED), (merging(), TALK), (merging(INSTRUCT), TALK)):
        ids = tokenise([record], tokenizer).input_ids[0]
        assert ids[0] == bos and ids.count(bos) == 1
    assert tokenise([ASKED], byte_level()).input_ids[0][0] != byte_level().eos_token_id


def test_every_answer_of_a_conversation_is_supervised() -> None:
    for tokenizer in (byte_level(), byte_level(CHATML), merging(INSTRUCT)):
        labels = tokenise([TALK], tokenizer).labels[0]
        assert [token for token in labels if token == tokenizer.eos_token_id] == [tokenizer.eos_token_id] * 2
        learnt = tokenizer.decode([token for token in labels if token != IGNORED], skip_special_tokens=True)
        assert learnt.replace(" ", "") == "Yes.Paris"


def test_chat_tokens_are_those_of_the_whole_rendered_conversation() -> None:
    tokenizer = byte_level(CHATML)
    messages = [{"role": turn.role, "content": turn.content} for turn in TALK.turns]
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    ids = tokenise([TALK], tokenizer).input_ids[0]
    assert list(ids) == list(whole)[: len(ids)] and tokenizer.decode(list(whole)[len(ids) :]) == "\n"


def test_text_is_supervised_from_its_second_token_on() -> None:
    examples = tokenise([Record(text="Paris is the capital.")], merging())
    assert examples.labels[0] == (IGNORED, *examples.input_ids[0][1:])
    assert examples.input_ids[0][0] == merging().bos_token_id
    assert examples.input_ids[0][-1] == merging().eos_token_id


def test_texts_with_marks_of_their_own_get_no_second_ones() -> None:
    tokenizer = merging()
    plain, marked = tokenise([Record(text="Paris."), Record(text="<s>Paris.</s>")], tokenizer).input_ids
    assert [marked.count(token) for token in (tokenizer.bos_token_id, tokenizer.eos_token_id)] == [1, 1]
    assert [marked[0], marked[-1]] == [plain[0], plain[-1]] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    given = Record((Turn("user", "Is it?"), Turn("assistant", "Yes.", learnt=False), *TALK.turns[2:]))
    assert [label for label in tokenise([given], tokenizer).labels[0] if label != IGNORED] == [
        label for label in tokenise([Record(TALK.turns[2:])], tokenizer).labels[0] if label != IGNORED
    ]


def test_the_few_records_that_a_template_refuses_are_left_out_and_named() -> None:
    odd = Record((Turn("user", "u"), *ASKED.turns), origin="a:9")
    tokenizer = merging(INSTRUCT)
    examples = tokenise([ASKED, odd, ASKED], tokenizer, bad_share=0.5)
    assert examples.input_ids == tokenise([ASKED, ASKED], tokenizer).input_ids
    assert [skipped.origin for skipped in examples.report.refused] == ["a:9"]
    with pytest.raises(BadInput, match=r"2 of 3 conversations .*a:9.*refuses"):
        tokenise([odd, odd, ASKED], tokenizer)
    with pytest.raises(BadInput, match="a:9"):
        tokenise_prompts([odd], tokenizer)


def test_supervising_prompts_too() -> None:
    examples = tokenise([ASKED], byte_level(), completion_only=False)
    assert examples.labels[0] == (IGNORED, *examples.input_ids[0][1:])
    assert examples.input_ids == tokenise([ASKED], byte_level()).input_ids


def test_without_a_stop_token_turns_are_parted_by_blank_lines() -> None:
    tokenizer = byte_level.__wrapped__()
    tokenizer.eos_token = None
    ids = tokenise([TALK], tokenizer).input_ids[0]
    assert tokenizer.decode(ids) == "Is it?\n\nYes.\n\nWhy?\n\nParis"


def test_truncation_cuts_the_right_side_and_is_reported() -> None:
    tokenizer = byte_level()
    whole = tokenise([ASKED], tokenizer)
    prompt, length = len(tokenise_prompts([ASKED], tokenizer)[0]), len(whole.input_ids[0])
    short = Record((Turn("user", "Why?"), Turn("assistant", "Yes.")))
    long = Record((Turn("user", "Why? " * 50), Turn("assistant", "Yes.")))
    examples = tokenise([ASKED, short, long], tokenizer, max_length=prompt + 2)
    excess = len(tokenise([long], tokenizer).input_ids[0]) - (prompt + 2)
    assert examples.input_ids[0] == whole.input_ids[0][: prompt + 2]
    assert sum(label != IGNORED for label in examples.labels[0]) == 2
    assert examples.origins == ("a.jsonl:1", "")
    report = examples.report
    assert (report.records, report.truncated, report.dropped) == (3, 2, 1)
    assert report.tokens_lost == length - (prompt + 2) + excess
    assert "2 of 3 records cut" in str(report) and "1 of them left out" in str(report)
    assert "none of 1 records" in str(whole.report)


def test_data_with_no_supervised_token_says_why_and_what_to_do() -> None:
    prompt = len(tokenise_prompts([ASKED], byte_level())[0])
    with pytest.raises(BadInput, match=rf"no supervised token: .*my\.jsonl.*the 5 tokens .*has {prompt}\).*raise"):
        tokenise(Records((ASKED, ASKED), "my.jsonl"), byte_level(), max_length=5)
    with pytest.raises(BadInput, match="no record"):
        tokenise([], byte_level())
    with pytest.raises(BadInput, match="max_length=1"):
        tokenise([ASKED], byte_level(), max_length=1)


def test_limits_and_padding_fall_back() -> None:
    assert default_max_length(byte_level()) == 512 and default_max_length(merging()) == 1024
    tokenizer = byte_level.__wrapped__()
    assert padding_id(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert padding_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert padding_id(tokenizer) == 0


def test_plain_text_has_no_prompt() -> None:
    with pytest.raises(BadInput, match=r"b:2 is a plain text"):
        tokenise_prompts([Record(text="t", origin="b:2")], byte_level())


def test_examples_can_be_taken_and_handed_on() -> None:
    examples = tokenise([ASKED, TALK], byte_level())
    turned = examples.take([1, 0])
    assert turned.input_ids == examples.input_ids[::-1] and turned.origins == examples.origins[::-1]
    assert examples.supervised == sum(label != IGNORED for labels in examples.labels for label in labels)
    row = turned.rows()[0]
    assert row["labels"] == list(turned.labels[0]) and row["attention_mask"] == [1] * len(row["input_ids"])


printable = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.just("\n"), min_size=1, max_size=25)
said = printable.filter(str.strip)


@given(
    talk=st.lists(st.tuples(said, said), min_size=1, max_size=3), which=st.sampled_from(["plain", "merging", "chat"])
)
def test_whatever_is_said_the_boundary_is_exact_and_nothing_is_lost(talk: list[tuple[str, str]], which: str) -> None:
    tokenizer = {"plain": byte_level(), "merging": merging(), "chat": byte_level(CHATML)}[which]
    turns = tuple(
        Turn(role, content) for pair in talk for role, content in zip(("user", "assistant"), pair, strict=True)
    )
    record = Record(turns)
    examples = tokenise([record], tokenizer)
    ids, labels, prompt = examples.input_ids[0], examples.labels[0], tokenise_prompts([record], tokenizer)[0]
    assert ids[: len(prompt)] == prompt and labels[len(prompt) - 1] == IGNORED
    assert labels[len(prompt) :] == ids[len(prompt) :]
    answer = tokenizer.decode(ids[len(prompt) : -1])
    lead = which == "merging"  # its decoder takes a leading space for the one it puts before texts
    assert answer == (talk[-1][1][1:] if lead and talk[-1][1].startswith(" ") else talk[-1][1])
    if which == "plain":
        stop = tokenizer.eos_token
        assert tokenizer.decode(ids) == "".join(f"{question}\n\n{answer}{stop}" for question, answer in talk)


@given(answers=st.lists(said, min_size=1, max_size=5), data=st.data())
def test_a_records_tokens_do_not_depend_on_its_neighbours(answers: list[str], data: Any) -> None:
    records = [Record((Turn("user", "Why?"), Turn("assistant", answer))) for answer in answers]
    place = data.draw(st.integers(0, len(records) - 1))
    assert tokenise(records, merging()).input_ids[place] == tokenise([records[place]], merging()).input_ids[0]
