"""What is printed: nothing that a terminal obeys, and no traceback where nobody can read it."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from keylayers.cli.streams import READER_GONE, Shown, shown_streams
from keylayers.cli.terminal import table
from keylayers.runs import note


def test_control_characters_of_files_are_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "\x1b]0;title\x07 \x1b[2J\r\u202e"
    with shown_streams():
        print(bad)
        sys.stderr.write(bad)
        note(bad)
    shown = capsys.readouterr()
    for text in (shown.out, *shown.err.splitlines()):
        assert text.isascii() and "\x1b" not in text and r"\x1b[2J\r\u202e" in text


def test_a_name_cannot_add_rows_to_a_table() -> None:
    text = table(("layer", "score"), [("a\nb  99", "1"), ("\x1b[31mred", "2")])
    assert len(text.splitlines()) == 4 and r"a\nb  99" in text and r"\x1b[31mred" in text


def test_characters_that_a_terminal_lacks_are_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with shown_streams():
        print("3 × 4")
    assert raw.getvalue() == b"3 \\xd7 4\n"


def pipe_without_reader() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def ended(stream: io.TextIOWrapper, name: str = "standard output") -> int | None:
    """The status with which writing to the stream ends a command; None if it goes on."""
    shown = Shown(stream, name)
    try:
        shown.write("results\n")
        shown.flush()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        shown.write("more\n")
        stream.close()  # as the interpreter does at its end: nothing is left that could fail
    return None


def test_results_that_cannot_be_shown_end_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(pipe_without_reader()) == READER_GONE and capsys.readouterr().err == ""
    if Path("/dev/full").exists():
        assert ended(open("/dev/full", "w")) == 2  # noqa: SIM115
        assert "cannot write to standard output: No space left" in capsys.readouterr().err


def test_what_is_said_on_standard_error_ends_nothing() -> None:
    assert ended(pipe_without_reader(), "standard error") is None


def test_closed_streams_are_the_null_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with shown_streams():
        assert sys.stdout.writable()
    assert sys.stdout is None


def test_names_in_score_files_reach_no_terminal(cli, tmp_path: Path) -> None:
    names = ["\x1b[31mred\x07", "\u202eb", "c", "d"]
    for file in ("a", "b"):
        layers = [{"name": name, "kind": "k", "size": 4, "score": place} for place, name in enumerate(names)]
        top = {
            "format": "keylayers/scores/1",
            "criterion": f"\x1b[5mx{file}",
            "granularity": "linear",
            "layers": layers,
        }
        (tmp_path / f"{file}.json").write_text(json.dumps(top))
    result = cli("compare", "a.json", "b.json")
    broken = cli("compare", "a.json", "\x1b[31m.json")
    for text in (result.out, result.err, broken.out, broken.err):
        assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert result.code == 0 and broken.code == 2 and r"\x1b[31m" in broken.err
