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
    twice = Record((*TALK.turns[1:2], *TALK.turns[1:3]), origin="a.jsonl:3")
    with pytest.raises(BadInput, match=r"a\.jsonl:3: .*refuses.*roles must alternate.*.*template=plain"):
        learnt(merging(INSTRUCT), twice, "auto")


def test_a_template_without_a_system_turn_has_it_before_the_first_question() -> None:
    first, *_ = learnt(merging(INSTRUCT), TALK, "auto")[0]
    assert first == ("<s>[INST] s\n\nu1 [/INST]", False)


def test_an_answer_that_opens_the_conversation_is_learnt_without_headers_and_default_prompts() -> None:
    """As Qwen's template, which brings a system prompt of its own and cannot render nothing at all."""
    template = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}" + CHATML
    pieces = learnt(byte_level(template), Record(TALK.turns[2:]), "chat")[0]
    assert [text for text, supervised in pieces if supervised] == ["a1<|im_end|>", "a2<|im_end|>"]
    assert pieces[0][0].endswith("You help.<|im_end|>\n<|im_start|>assistant\n")


CALLING = Record(
    (
        Turn("user", "u"),
        Turn("assistant", "", ('{"name": "look", "arguments": {"q": 1}}',)),
        Turn("tool", "found"),
        Turn("assistant", "a"),
    ),
    tools='[{"type": "function", "function": {"name": "look"}}]',
)
SHOWING = CHATML.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for c in m.tool_calls or [] %}"
    "CALL {{ c.function.name }} {{ c.function.arguments.q }}{% endfor %}",
).replace("{% for m in messages %}", "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}", 1)


def test_function_calls_in_the_templates_own_notation_or_as_text() -> None:
    for template, call in ((SHOWING, "CALL look 1"), (CHATML, "<tool_call>\n" + CALLING.turns[1].calls[0])):
        pieces = learnt(byte_level(template), CALLING, "chat")[0]
        first, last = (text for text, supervised in pieces if supervised)
        assert first.startswith(call) and last == "a<|im_end|>"
        given = "".join(text for text, supervised in pieces if not supervised)
        assert "found" in given and '"look"' in given and "None" not in given


def test_the_place_of_a_call_is_told_where_earlier_turns_are_rendered_otherwise() -> None:
    reasoning = REASONING.replace("{{ m.content }}", SHOWING.partition("\n")[2].partition("<|im_end|>")[0])
    pieces = learnt(byte_level(reasoning), CALLING, "chat")[0]
    assert next(text for text, supervised in pieces if supervised) == "CALL look 1<|im_end|>"


def test_answers_that_are_only_given_are_not_learnt() -> None:
    given = Record((*TALK.turns[:2], Turn("assistant", "a1", learnt=False), *TALK.turns[3:]))
    for tokenizer in (byte_level(), byte_level(CHATML)):
        learnt_texts = [text for run in learnt(tokenizer, given, "auto") for text, supervised in run if supervised]
        assert [text.removesuffix("<|im_end|>") for text in learnt_texts] == ["a2"]


def test_contents_that_bring_their_own_marks_get_no_second_ones() -> None:
    marked = Record((Turn("user", "<s>u"), Turn("assistant", "a</s>")))
    assert learnt(merging(INSTRUCT), marked, "auto") == [[("<s>[INST] u [/INST]", False), (" a</s>", True)]]


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
