import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.data.formats import FORMATS, load_records
from keylayers.data.records import Record, Turn
from keylayers.errors import BadInput, UnknownName


def stored(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(prompt: str, completion: str, system: str = "") -> Record:
    before = (Turn("system", system),) if system else ()
    return Record((*before, Turn("user", prompt), Turn("assistant", completion)))


TALK = Record((Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")))


@pytest.mark.parametrize(
    ("row", "format", "record"),
    [
        ({"instruction": "i", "input": "", "output": "o"}, "alpaca", asked("i", "o")),
        ({"instruction": "i", "input": "x", "output": "o", "text": "t"}, "alpaca", asked("i\n\nx", "o")),
        ({"instruction": "i", "output": "o", "system": "s"}, "alpaca", asked("i", "o", "s")),
        ({"instruction": "c", "output": "d", "history": [["a", "b"]]}, "alpaca", TALK),
        ({"prompt": "p", "completion": "c"}, "prompt-completion", asked("p", "c")),
        ({"question": "p", "answer": "c"}, "prompt-completion", asked("p", "c")),
        ({"prompt": "p", "response": "c"}, "prompt-completion", asked("p", "c")),
        ({"query": "p", "response": "c"}, "prompt-completion", asked("p", "c")),
        ({"instruction": "p", "response": "c", "context": ""}, "prompt-completion", asked("p", "c")),
        ({"context": "k", "question": "p", "answer": "c"}, "prompt-completion", asked("k\n\np", "c")),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "prompt-completion", asked("p", "c")),
        (
            {"prompt": [{"role": "user", "content": "p"}], "completion": [{"role": "assistant", "content": "c"}]},
            "prompt-completion",
            asked("p", "c"),
        ),
        (
            {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "c"}], "system": "s"},
            "sharegpt",
            asked("p", "c", "s"),
        ),
        (
            {"conversations": [{"from": "human", "value": "p"}], "chosen": {"from": "gpt", "value": "c"}},
            "sharegpt",
            asked("p", "c"),
        ),
        (
            {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}], "prompt": "p"},
            "messages",
            asked("p", "c"),
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": ""},
                    {"role": "user", "content": [{"type": "text", "text": "p"}]},
                    {"role": "assistant", "content": "c"},
                    {"role": "user", "content": "nobody answers this"},
                ]
            },
            "messages",
            asked("p", "c"),
        ),
        ({"text": "t"}, "text", Record(text="t")),
        ("t", "text", Record(text="t")),
    ],
)
def test_each_layout_is_recognised_and_read(tmp_path: Path, row: Any, format: str, record: Record) -> None:
    path = stored(tmp_path / "a.jsonl", [row])
    for named in ("auto", format):
        records = load_records(path, format=named)
        assert (records.format, list(records)) == (format, [record])
        assert records[0].origin == f"{path}:1"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p"}, "has no 'completion'"),
        ({"prompt": "p", "completion": None}, "has no 'completion'"),
        ({"prompt": "p", "completion": " \n"}, "'completion' is empty"),
        ({"prompt": "", "completion": "c"}, "'prompt' is empty"),
        ({"prompt": "p", "completion": 3}, "'completion' is of type int, expected text"),
        ({"prompt": "p", "completion": ["c"]}, "'completion' is of type list"),
        ({"prompt": ["p"], "completion": ["c"]}, "message 1 is of type str"),
        ({"prompt": "p", "completion": "\ud800"}, "half of a surrogate"),
        ([1, 2], "the record is of type list"),
        (None, "the record is of type NoneType"),
        ({"instruction": "i", "output": ""}, "'output' is empty"),
        ({"instruction": " ", "input": "", "output": "o"}, "'instruction' is empty"),
        ({"instruction": "i", "output": "o", "history": [["a"]]}, "'history'"),
        ({"instruction": "i", "output": "o", "history": 3}, "'history'"),
        ({"instruction": "i", "output": "o", "history": [["a", 3]]}, "assistant turn is of type int"),
        ({"messages": "hello"}, "messages are of type str"),
        ({"messages": ["hello"]}, "message 1 is of type str"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": [{"role": "user", "content": "p"}]}, "no assistant turn"),
        ({"messages": [{"role": "wizard", "content": "p"}]}, "message 1: .*the unknown role 'wizard'"),
        ({"messages": [{"role": ["user"], "content": "p"}]}, "message 1: .*the unknown role"),
        ({"messages": [{"content": "p"}]}, "message 1: .*the unknown role None"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "c"}]}, "message 1: .*type NoneType"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "message 1: .*is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "part that is not text"),
        ({"text": ""}, "'text' is empty"),
    ],
)
def test_a_bad_record_is_named_by_line_and_reason(tmp_path: Path, row: Any, reason: str) -> None:
    layouts: dict[str, Any] = {
        "messages": {"messages": [{"role": "assistant", "content": "good"}]},
        "instruction": {"instruction": "i", "output": "o"},
        "text": {"text": "t"},
    }
    good = next(
        (v for k, v in layouts.items() if isinstance(row, dict) and k in row), {"prompt": "p", "completion": "c"}
    )
    path = stored(tmp_path / "a.jsonl", [good, row, *[good] * 120])
    records = load_records(path)
    assert len(records) == 121
    assert [skipped.origin for skipped in records.skipped] == [f"{path}:2"]
    with pytest.raises(BadInput, match=reason):
        raise BadInput(records.skipped[0].reason)
    with pytest.raises(BadInput, match=reason) as caught:
        load_records(path, bad_share=0.001)
    assert f"{path}:2" in str(caught.value) and "1 of 122" in str(caught.value)


def test_too_many_bad_records_list_the_first_five_and_the_share_to_allow(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.jsonl", [{"text": "t"}] * 9 + [{"text": ""}] * 7)
    with pytest.raises(BadInput) as caught:
        load_records(path)
    message = str(caught.value)
    assert "7 of 16" in message and "... and 2 more" in message
    assert [f"{path}:{line}:" in message for line in range(9, 16)] == [False, True, True, True, True, True, False]
    assert len(load_records(path, bad_share=float(message.rpartition("bad_share=")[2].rstrip("`.")))) == 9


def test_bad_share_may_be_reached_but_not_passed(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.jsonl", [{"text": "t"}] * 99 + [{"text": ""}])
    assert len(load_records(path).skipped) == 1
    with pytest.raises(BadInput):
        load_records(path, bad_share=0.0099)


def test_one_good_record_is_needed_whatever_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="at least one must be good"):
        load_records(stored(tmp_path / "a.jsonl", [{"text": ""}]), bad_share=1.0)


def test_table_rows_of_another_width_are_bad_records(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\n" + "q,a\n" * 3 + "q,a,extra\n")
    records = load_records(path, bad_share=0.5)
    assert len(records) == 3 and records.skipped[0].reason == "3 cells where the header has 2"


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    for name in ("a.jsonl", "a.txt", "a.csv"):
        (tmp_path / name).write_text(content.replace(" ", ""))
        with pytest.raises(BadInput, match="holds no record; expected messages"):
            load_records(tmp_path / name)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(BadInput, match="holds no record"):
        load_records(tmp_path / "a.json")


def test_unknown_layout_lists_its_keys_and_the_known_ones(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.jsonl", [{"frage": "f", "antwort": "a"}])
    with pytest.raises(BadInput, match=r"the keys antwort, frage; expected messages .*alpaca.*columns.prompt="):
        load_records(path)
    with pytest.raises(BadInput, match="neither objects nor texts"):
        load_records(stored(path, [1, 2]))


def test_columns_of_ones_own_names(tmp_path: Path) -> None:
    row = {"frage": "f", "antwort": "a", "question": "not this", "answer": "nor this", "wer": "s", "text": "t"}
    path = stored(tmp_path / "a.jsonl", [row])
    columns = {"prompt": "frage", "completion": "antwort"}
    assert list(load_records(path, columns=columns)) == [asked("f", "a")]
    assert list(load_records(path, columns={**columns, "system": "wer"})) == [asked("f", "a", "s")]
    assert list(load_records(path, columns={"completion": "antwort"})) == [asked("not this", "a")]
    assert list(load_records(path, columns={"text": "antwort"})) == [Record(text="a")]


def test_a_mapped_column_is_never_replaced_by_another(tmp_path: Path) -> None:
    good, bad = {"mine": "m", "question": "q", "answer": "a"}, {"question": "q", "answer": "a"}
    path = stored(tmp_path / "a.jsonl", [good, bad])
    records = load_records(path, columns={"prompt": "mine"}, bad_share=0.5)
    assert list(records) == [asked("m", "a")] and records.skipped[0].reason == "it has no 'prompt'"


def test_mapped_messages(tmp_path: Path) -> None:
    row = {"dialogue": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}], "prompt": "x"}
    assert list(load_records(stored(tmp_path / "a.jsonl", [row]), columns={"messages": "dialogue"})) == [
        asked("p", "c")
    ]


def test_unknown_names_offer_the_nearest(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(UnknownName, match="column 'questoin'; did you mean 'question'"):
        load_records(path, columns={"prompt": "questoin"})
    with pytest.raises(UnknownName, match="column role 'promt'; did you mean 'prompt'"):
        load_records(path, columns={"promt": "question"})
    with pytest.raises(UnknownName, match="data format 'alpacca'; did you mean 'alpaca'"):
        load_records(path, format="alpacca")


@pytest.mark.parametrize("settings", [{"limit": 0}, {"bad_share": 1.5}, {"bad_share": float("nan")}])
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"expected (one between 0 and 1|at least 1)"):
        load_records(stored(tmp_path / "a.jsonl", ["t"]), **settings)


def test_limit_stops_reading(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.jsonl", [{"text": f"t{i}"} for i in range(300)])
    path.write_text(path.read_text() + "not json\n")
    assert [record.text for record in load_records(path, limit=200)] == [f"t{i}" for i in range(200)]
    with pytest.raises(BadInput, match=":301: invalid JSON"):
        load_records(path)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
exchanges = st.lists(st.tuples(words, words), min_size=1, max_size=3)


def laid_out(format: str, talk: list[tuple[str, str]]) -> Any:
    """The conversation as this format stores it."""
    spoken = [turn for question, answer in talk for turn in (("user", question), ("assistant", answer))]
    (question, answer), history = talk[-1], [list(pair) for pair in talk[:-1]]
    return {
        "messages": {"messages": [{"role": role, "content": content} for role, content in spoken]},
        "sharegpt": {
            "conversations": [{"from": "human" if who == "user" else "gpt", "value": said} for who, said in spoken]
        },
        "alpaca": {"instruction": question, "input": "", "output": answer, "history": history},
        "prompt-completion": {"prompt": question, "completion": answer},
        "preference": {
            "chosen": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "rejected": [{"role": "user", "content": question}, {"role": "assistant", "content": f"not {answer}"}],
        },
        "text": {"text": answer},
    }[format]


@given(talks=st.lists(exchanges, min_size=1, max_size=4), format=st.sampled_from(sorted(FORMATS)))
def test_every_format_gives_back_what_was_stored(tmp_path_factory: Any, talks: Any, format: str) -> None:
    folder = tmp_path_factory.mktemp("formats")
    rows = [laid_out(format, talk) for talk in talks]
    records = load_records(stored(folder / "a.jsonl", rows))
    (folder / "b.json").write_text(json.dumps(rows))
    assert records.format == format and not records.skipped
    assert records.sha256 == load_records(folder / "b.json").sha256
    for record, talk in zip(records, talks, strict=True):
        kept = talk if format in ("messages", "sharegpt", "alpaca") else talk[-1:]
        spoken = tuple(Turn(*turn) for q, a in kept for turn in (("user", q), ("assistant", a)))
        assert record == (Record(text=talk[-1][1]) if format == "text" else Record(spoken))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(
    "messages conversations instruction input output history system prompt completion context text chosen rejected "
    "label tools".split()
)


@given(rows=st.lists(st.dictionaries(keys, anything, max_size=4) | anything, min_size=1, max_size=4))
def test_no_json_whatever_escapes_as_another_error(tmp_path_factory: Any, rows: list[Any]) -> None:
    path = stored(tmp_path_factory.mktemp("any") / "a.jsonl", rows)
    try:
        records = load_records(path, bad_share=1.0)
        assert 0 < len(records) <= len(rows) == len(records) + len(records.skipped) + records.unwanted
    except BadInput as error:
        assert str(path) in str(error)
