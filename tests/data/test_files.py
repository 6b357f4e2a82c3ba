import csv
import gzip
import itertools
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from keylayers.data.files import BadRow, file_kind, file_rows
from keylayers.errors import BadInput

ROWS = [{"prompt": "Où?", "completion": 'He said "here",\nthen left.'}, {"prompt": "b", "completion": "🦊\tfox"}]


def write(path: Path, content: str) -> Path:
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as handle:
        handle.write(content)
    return path


def as_table(path: Path, delimiter: str) -> Path:
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, ["prompt", "completion"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("zipped", ["", ".gz"])
def test_every_text_format_gives_the_same_rows(tmp_path: Path, zipped: str) -> None:
    files = [
        write(tmp_path / f"a.json{zipped}", json.dumps(ROWS, indent=1)),
        write(tmp_path / f"b.jsonl{zipped}", "\n\n".join(map(json.dumps, ROWS)) + "\n"),
        write(tmp_path / f"lines.json{zipped}", "\n".join(map(json.dumps, ROWS))),
        write(tmp_path / f"wrapped.json{zipped}", json.dumps({"version": 1, "data": ROWS})),
        as_table(tmp_path / f"c.csv{zipped}", ","),
        as_table(tmp_path / f"d.TSV{zipped}", "\t"),
    ]
    for path in files:
        assert [row for _, row in file_rows(path)] == ROWS, path


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert list(file_rows(tmp_path / "a.parquet")) == [
        (f"{tmp_path}/a.parquet[0]", ROWS[0]),
        (f"{tmp_path}/a.parquet[1]", ROWS[1]),
    ]


def test_origins_are_lines_where_there_are_lines(tmp_path: Path) -> None:
    jsonl = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    table = as_table(tmp_path / "a.csv", ",")  # its first record spans two lines
    text = write(tmp_path / "a.txt", "\n\none\ntwo\n\n\nthree\n")
    listed = write(tmp_path / "a.json", '["x", "y"]')
    assert [origin for origin, _ in file_rows(jsonl)] == [f"{jsonl}:1", f"{jsonl}:3"]
    assert [origin for origin, _ in file_rows(table)] == [f"{table}:2", f"{table}:4"]
    assert list(file_rows(text)) == [(f"{text}:3", "one\ntwo"), (f"{text}:7", "three")]
    assert list(file_rows(listed)) == [(f"{listed}[0]", "x"), (f"{listed}[1]", "y")]


def test_text_without_blank_lines_is_read_by_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\r\ntwo\n")
    assert list(file_rows(path)) == [(f"{path}:1", "one"), (f"{path}:2", "two")]


def test_jsonl_is_streamed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\nnot json\n')
    assert next(iter(file_rows(path))) == (f"{path}:1", {"a": 1})


def test_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfprompt,completion\na,b\n")
    assert [row for _, row in file_rows(tmp_path / "a.csv")] == [{"prompt": "a", "completion": "b"}]


def test_long_cells_are_read_and_the_limit_is_put_back(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    path = write(tmp_path / "a.csv", f"text\n{'x' * 200_000}\n")
    assert [len(row["text"]) for _, row in file_rows(path)] == [200_000]  # type: ignore[index]
    assert csv.field_size_limit() == before


def test_table_rows_of_another_width_are_marked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b\n1,2,3\n\n4,5\n")
    assert list(file_rows(path)) == [
        (f"{path}:2", BadRow("3 cells where the header has 2")),
        (f"{path}:4", {"a": "4", "b": "5"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": }\n', r"a\.jsonl:2: invalid JSON: .* column 7"),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', r"a\.json:2: invalid JSON"),
        ("a.json", b'[{"a": 1}] tail', r"a\.json:1: invalid JSON: Extra data"),
        ("a.json", b"", "is empty"),
        ("a.json", b"3", "one JSON int"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "invalid JSON"),
        ("a.jsonl", '{"a": "é"}\n'.encode("latin-1"), r"not UTF-8 text \(byte 0xe9"),
        ("a.json", '[{"a": "b"}]'.encode("utf-16"), "not UTF-8"),
        ("a.csv", b'a,b\n"1"2,3\n', r"a\.csv:2: malformed table"),
        ("a.csv", b'a,b\n1,"2', r"a\.csv:2: malformed table"),
        ("a.csv", b"a,a\n1,2\n", "occurs twice"),
        ("a.jsonl.gz", b"plain", "not a sound gzip"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-12],
            "not a sound gzip file: Compressed file ended",
        ),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-8] + bytes(8), "not a sound gzip file: CRC"),
        ("a.parquet", b"PAR1 and nothing else", "not a sound parquet"),
        ("a.parquet", b"", "not a sound parquet"),
        ("a.pkl", b"\x80\x04.", "cannot tell its format"),
        ("a.parquet.gz", b"", "cannot tell its format"),
    ],
    ids=map(str, itertools.count()),
)
def test_malformed_files_are_named_with_what_is_wrong(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=reason) as caught:
        list(file_rows(tmp_path / name))
    assert name in str(caught.value)


def test_missing_file_names_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "alpaca.json", "[]")
    write(tmp_path / "notes.md", "")
    with pytest.raises(BadInput, match=r"no such data file: .*alpacca\.json; .* has alpaca\.json$"):
        list(file_rows(tmp_path / "alpacca.json"))
    with pytest.raises(BadInput, match="is a folder"):
        list(file_rows(tmp_path))


def test_kind_is_told_by_name() -> None:
    names = ("a.json", "a.b.JSONL.GZ", "a.parquet", "a.gz", "a.pt", "json")
    assert [file_kind(Path(name)) for name in names] == [".json", ".jsonl", ".parquet", None, None, None]


@pytest.mark.parametrize(
    "content",
    [
        "prompt,completion,,\na,b,,\n,,,\n",
        ",prompt,completion\n0,a,b\n",
        "prompt;completion\na;b\n",
        'prompt;"completion"\n"a";b\n',
        "sep=;\nprompt;completion\na;b\n",
        "prompt\tcompletion\na\tb\n",
        " prompt , completion\na,b,\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert [row for _, row in file_rows(path)] == [{"prompt": "a", "completion": "b"}]
