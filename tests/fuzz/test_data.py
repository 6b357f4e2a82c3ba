"""Data sets of texts, as their readers meet them."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.data.formats import load_records
from keylayers.data.splits import split
from tests.fuzz.mutations import damaged, few, mutated, only_ours, text_of

ALPACA = {"instruction": "Add", "input": "1 and 2", "output": "3", "system": "Be short.", "history": [["a", "b"]]}
CALLED = {"name": "f", "arguments": "{}"}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALLED}]},
        {"role": "tool", "name": "f", "content": "3"},
        {"role": "assistant", "content": "Hi."},
    ]
}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."}], "system": "x"}
PREFERENCE = {
    "prompt": [{"role": "user", "content": "Hello"}],
    "chosen": [{"role": "assistant", "content": "Hi."}],
    "rejected": [{"role": "assistant", "content": "No."}],
}
KTO = {"prompt": "Hello", "completion": "Hi.", "label": True}
PAIR = {"question": "Hello", "context": "There", "answer": "Hi."}
TEXT = {"text": "Once upon a time."}
RECORDS = {
    "alpaca": ALPACA,
    "messages": MESSAGES,
    "sharegpt": SHAREGPT,
    "preference": PREFERENCE,
    "kto": KTO,
    "pair": PAIR,
    "text": TEXT,
}
COLUMNS = st.dictionaries(
    st.sampled_from(["prompt", "completion", "context", "system", "text", "messages", "x"]),
    st.sampled_from(["question", "answer", "text", "messages", "nowhere", ""]),
    max_size=2,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def use(path, columns=None) -> None:
    """Reads the file and looks at all that is made of it."""
    records = load_records(path, columns=columns, bad_share=1.0)
    for record in records:
        assert record.completion.strip() and record.key is not None and record.prompt is not None
    assert records.sha256 and records.provenance
    only_ours(lambda: split(records))


@pytest.mark.parametrize("name", RECORDS)
@few()
@given(data=st.data())
def test_rows_of_json(place, name, data):
    rows = [data.draw(mutated(RECORDS[name])), RECORDS[name]]
    wrap = data.draw(st.sampled_from(["jsonl", "list", "data", "gz"]))
    if wrap in ("jsonl", "gz"):
        content = b"\n".join(map(text_of, rows))
    else:
        content = text_of(rows if wrap == "list" else {"data": rows})
    path = place / {"jsonl": "a.jsonl", "gz": "a.jsonl.gz"}.get(wrap, "a.json")
    path.write_bytes(gzip.compress(content, 1) if wrap == "gz" else content)
    only_ours(lambda: use(path, data.draw(COLUMNS)))


def _table() -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([["prompt", "completion"], ["Hello, you", 'Say "hi"'], ["Two\nlines", "Yes"]])
    return text.getvalue().encode()


def _parquet() -> bytes:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist([PAIR, PAIR]), stream)
    return stream.getvalue()


FILES = {
    "a.csv": _table(),
    "a.tsv": _table().replace(b",", b"\t"),
    "a.txt": b"One.\n\nTwo,\nand more.\n",
    "a.txt.gz": gzip.compress(b"One.\n\nTwo.\n"),
    "a.json": json.dumps([PAIR, MESSAGES]).encode(),
    "a.jsonl": json.dumps(PAIR).encode() + b"\n" + json.dumps(PAIR).encode(),
    "a.json.gz": gzip.compress(json.dumps([PAIR]).encode()),
    "a.parquet": _parquet(),
}


@pytest.mark.parametrize("name", FILES)
@few()
@given(data=st.data())
def test_damaged_files(place, name, data):
    (place / name).write_bytes(data.draw(damaged(FILES[name])))
    only_ours(lambda: use(place / name))


@few()
@given(rows=st.lists(mutated(MESSAGES), min_size=1, max_size=2))
def test_tables_of_odd_columns(place, rows):
    try:
        table = pa.Table.from_pylist([row if isinstance(row, dict) else {"text": row} for row in rows])
        pyarrow.parquet.write_table(table, place / "odd.parquet")
    except Exception:  # no file of pyarrow's has such a table
        return
    only_ours(lambda: use(place / "odd.parquet"))
