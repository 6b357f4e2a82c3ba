from typing import Any

import pytest

from keylayers.data.records import Record, Turn
from keylayers.data.templates import PLAIN, lay_out, resolve_template
from keylayers.errors import BadInput
from tests.data.bpe import CHATML, INSTRUCT, REASONING, byte_level, merging

TALK = Record(
    (
        Turn("system", "s"),
        Turn("user", "u1"),
        Turn("assistant", "a1"),
        Turn("user", "u2"),
        Turn("assistant", "a2"),
    ),
    origin="a.jsonl:3",
)


def learnt(tokenizer: Any, record: Record, template: str) -> list[list[tuple[str, bool]]]:
    layout = lay_out(record, tokenizer, resolve_template(tokenizer, template))
    return [[(piece.text, piece.supervised) for piece in run] for run in layout.runs]


def test_plain_puts_a_blank_line_between_and_a_stop_after_every_answer() -> None:
    assert learnt(byte_level(), TALK, "plain") == [
        [("s\n\nu1\n\n", False), ("a1", True)],
        [("u2\n\n", False), ("a2", True)],
    ]


def test_text_is_learnt_whole() -> None:
    assert learnt(byte_level(CHATML), Record(text="t"), "auto") == [[("t", True)]]


def test_template_of_ones_own_may_hold_braces() -> None:
    pair = Record(TALK.turns[1:3])
    assert learnt(byte_level(), pair, "{q}: {prompt}\n{a}: {completion}.") == [
        [("{q}: u1\n{a}: ", False), ("a1.", True)]
    ]


def test_chat_supervises_every_answer_with_its_stop_token() -> None:
    assert learnt(byte_level(CHATML), TALK, "chat") == [
        [
            ("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu1<|im_end|>\n<|im_start|>assistant\n", False),
            ("a1<|im_end|>", True),
            ("\n<|im_start|>user\nu2<|im_end|>\n<|im_start|>assistant\n", False),
            ("a2<|im_end|>", True),
        ]
    ]


def test_chat_that_renders_earlier_answers_otherwise_than_the_last() -> None:
    pieces = learnt(byte_level(REASONING), TALK, "chat")[0]
    assert [text for text, supervised in pieces if supervised] == [
        "a1<|im_end|>",
        "<think>\n\n</think>\n\na2<|im_end|>",
    ]
    rendered = byte_level(REASONING).apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in TALK.turns], tokenize=False
    )
    assert "".join(text for text, _ in pieces) == rendered.rstrip()


def test_chat_without_generation_prompt() -> None:
    assert learnt(merging(INSTRUCT), Record(TALK.turns[1:]), "auto") == [
        [("<s>[INST] u1 [/INST]", False), (" a1</s>", True), ("[INST] u2 [/INST]", False), (" a2</s>", True)]
    ]


def test_a_conversation_the_template_refuses_is_named() -> None:
    with pytest.raises(BadInput, match=r"a\.jsonl:3: .*refuses.*roles must alternate.*template='plain'"):
        learnt(merging(INSTRUCT), TALK, "auto")


def test_a_template_that_changes_contents_is_refused_where_it_hides_an_answer() -> None:
    shouting = byte_level("{% for m in messages %}{{ loop.length }}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(BadInput, match="turn 3"):
        learnt(shouting, TALK, "chat")


def test_auto_is_chat_where_there_is_a_chat_template() -> None:
    assert resolve_template(byte_level(CHATML), "auto") == "chat"
    assert resolve_template(byte_level(), "auto") == resolve_template(byte_level(CHATML), "plain") == PLAIN


@pytest.mark.parametrize("template", ["chat", "", "{prompt}", "{completion}{prompt}", "{prompt}{prompt}{completion}"])
def test_impossible_templates(template: str) -> None:
    with pytest.raises(BadInput, match="template="):
        resolve_template(byte_level(), template)
