"""Rows as the field writes them: tool calls, preferences, verdicts, joined tables."""

import json
from pathlib import Path
from typing import Any

import pytest

from keylayers.data.formats import load_records
from keylayers.data.records import Record, Turn
from keylayers.errors import BadInput

USER, ANSWER = Turn("user", "p"), Turn("assistant", "c")
ASKED = Record((USER, ANSWER))
CALL = '{"name": "look", "arguments": {"q": 1}}'
SCHEMA = {"type": "function", "function": {"name": "look"}}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def read(tmp_path: Path, *rows: Any) -> list[Record]:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(load_records(path))


CALLED = (
    Turn("user", "p"),
    Turn("assistant", "", (CALL,)),
    Turn("tool", "found"),
    Turn("assistant", "c"),
)


@pytest.mark.parametrize(
    "messages",
    [
        [
            said("user", "p"),
            said("assistant", None, tool_calls=[{"function": {"name": "look", "arguments": '{"q": 1}'}}]),
            said("tool", "found", tool_call_id="1"),
            said("assistant", "c", tool_calls=None),
        ],
        [
            said("user", "p"),
            said("assistant", "", function_call={"name": "look", "arguments": {"q": 1, "of_another_row": None}}),
            said("function", "found"),
            said("assistant", "c"),
        ],
        [
            {"from": "human", "value": "p"},
            {"from": "function_call", "value": '{"name": "look", "arguments": {"q": 1}}'},
            {"from": "observation", "value": "found"},
            {"from": "gpt", "value": "c"},
        ],
    ],
    ids=["openai", "openai of before", "sharegpt"],
)
def test_function_calls_in_their_three_spellings(tmp_path: Path, messages: Any) -> None:
    row = {"messages": messages, "tools": json.dumps([SCHEMA])}
    assert read(tmp_path, row) == [Record(CALLED, tools=json.dumps([SCHEMA]))]
    assert '"look"' in CALLED[1].text and "calls" in read(tmp_path, row)[0].canonical


def test_roles_in_any_spelling_and_contents_in_parts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "p", "image_url": None}]
    row = {"messages": [said("developer", "s"), said("User", parts), said(" Assistant", "c")]}
    assert read(tmp_path, row) == [Record((Turn("system", "s"), USER, ANSWER))]
    stored = {"messages": json.dumps([said("user", "p"), said("assistant", "c")])}
    assert read(tmp_path, stored) == [ASKED]
    image = {"messages": [said("user", [{"type": "image_url"}]), said("assistant", "c")]}
    with pytest.raises(BadInput, match=r"message 1: .*not text \(image_url\)"):
        read(tmp_path, image)


CHOSEN = [said("user", "p"), said("assistant", "c")]


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": CHOSEN, "rejected": [said("user", "p"), said("assistant", "r")]},
        {"prompt": "p", "chosen": CHOSEN, "rejected": CHOSEN},
        {"prompt": "p", "chosen": CHOSEN[1:], "rejected": CHOSEN[1:]},
        {"prompt": CHOSEN[:1], "chosen": CHOSEN[1:], "rejected": CHOSEN[1:]},
        {"prompt": CHOSEN[:1], "chosen": "c", "rejected": "r"},
        {"instruction": "p", "input": "", "chosen": "c", "rejected": "r"},
        {"chosen": "p c", "rejected": "p rather not"},
        {"chosen": "\n\nHuman: p\n\nAssistant: c", "rejected": "\n\nHuman: p\n\nAssistant: r"},
        {"messages": CHOSEN, "label": True},
        {"prompt": "p", "completion": "c", "label": "True"},
        {"Prompt": "p", " Completion ": "c", "Label": 0},
        {"instruction": "p", "input": float("nan"), "output": "c"},
        {"messages": None, "text": None, "prompt": "p", "completion": "c"},
    ],
)
def test_preferences_verdicts_and_what_tables_leave_empty(tmp_path: Path, row: Any) -> None:
    assert read(tmp_path, row) == [ASKED]


def test_only_what_differs_from_the_rejected_conversation_is_learnt(tmp_path: Path) -> None:
    opening = [said("user", "hello"), said("assistant", "hi")]
    row = {"chosen": [*opening, *CHOSEN], "rejected": [*opening, said("user", "p"), said("assistant", "r")]}
    (record,) = read(tmp_path, row)
    assert [turn.learnt for turn in record.turns if turn.role == "assistant"] == [False, True]
    weighed = {"messages": [said("user", "hello"), said("assistant", "hi", weight=0), *CHOSEN]}
    assert read(tmp_path, weighed)[0].turns == record.turns
    with pytest.raises(BadInput, match="marked as not to be learnt"):
        read(tmp_path, {"messages": [said("user", "p"), said("assistant", "c", weight=0)]})


def test_answers_marked_as_bad_are_left_out_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": "p", "completion": f"{place}", "label": place % 3 == 0} for place in range(9)]
    path.write_text("\n".join(map(json.dumps, rows)))
    records = load_records(path)
    assert [record.completion for record in records] == ["0", "3", "6"]
    assert (records.unwanted, records.provenance["unwanted"], records.skipped) == (6, 6, ())
    path.write_text(json.dumps({"prompt": "p", "completion": "c", "label": False}))
    with pytest.raises(BadInput, match="all 1 answers are marked as bad"):
        load_records(path)


def test_rows_of_a_joined_table_are_read_each_by_its_own_format(tmp_path: Path) -> None:
    empty = dict.fromkeys(("messages", "instruction", "output", "text"))
    rows = [{**empty, "text": "t"}, {**empty, "messages": CHOSEN}, {**empty, "instruction": "p", "output": "c"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    records = load_records(path)
    assert list(records) == [Record(text="t"), ASKED, ASKED]
    assert records.format == "messages, alpaca, text"
