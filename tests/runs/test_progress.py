"""Progress goes to standard error: few plain lines into a file, a bar on a terminal; standard output stays clean."""

import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from keylayers.runs.progress import Progress, format_duration, note

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


def test_plain_lines_are_the_first_the_last_and_one_every_ten_seconds(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in Progress(range(30), "scoring"):
        clock[0] += 1.0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "scoring: 0/30",
        "scoring: 10/30, 10 s, about 20 s left",
        "scoring: 20/30, 20 s, about 10 s left",
        "scoring: 30/30, 30 s",
    ]


def test_nested_loops_share_the_lines(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in Progress(["a", "b"], "arms"):
        with Progress(6, "steps") as bar:
            for step in range(6):
                clock[0] += 1.0
                bar.advance(text=f"loss {step}.0")
    assert capsys.readouterr().err.splitlines() == [
        "arms: 0/2",
        "arms: 1/2, 10 s, about 2.0 s left > steps: 4/6, 4.0 s, about 2.0 s left, loss 3.0",
        "arms: 2/2, 12 s",
    ]


def test_a_resumed_loop_estimates_from_its_own_pace(clock: list[float]) -> None:
    with Progress(100, "learning", start=90) as bar:
        assert bar.remaining is None
        clock[0] += 3.0
        bar.advance(2)
        assert bar.remaining == pytest.approx(8 * 1.5)


def test_items_without_a_length_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Progress(iter("abc"), "records")) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("records: 3, ")


def test_an_error_inside_passes_through_and_ends_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        for item in Progress([1, 0], "dividing"):
            _ = 1 / item
    list(Progress([1], "next"))
    assert capsys.readouterr().err.splitlines()[:2] == ["dividing: 0/2", "next: 0/1"]


def test_notes_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    note("[bold] is printed as it is")
    assert capsys.readouterr() == ("", "[bold] is printed as it is\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")],
)
def test_durations_are_spoken(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


ON_TERMINAL = """
from keylayers.runs import note, Progress
for arm in Progress(["a", "b", "c"], "arms"):
    with Progress(5, "steps") as bar:
        for step in range(5):
            bar.advance()
    note(f"arm {arm} done")
    print("result", arm)
with Progress(1, "last") as bar:
    bar.advance(text="loss [1.5]")
try:
    for arm in Progress(range(4), "failing"):
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("stopped")
from keylayers.runs import Progress as module
import sys
assert sys.modules["keylayers.runs.progress"]._bars is None
"""


def test_on_a_terminal_bars_nest_and_a_piped_stdout_stays_clean() -> None:
    reader, writer = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", ON_TERMINAL],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=writer,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(writer)
    shown = b""
    while True:
        try:
            block = os.read(reader, 65536)
        except OSError:  # Linux reports the end of a pseudo-terminal so
            break
        if not block:
            break
        shown += block
    os.close(reader)
    out = process.communicate(timeout=20)[0].decode()
    assert process.returncode == 0, shown.decode()
    assert out.splitlines() == ["result a", "result b", "result c", "stopped"]
    text = shown.decode()
    assert "arms" in text and "3/3" in text and "loss [1.5]" in text and "arm b done" in text
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is shown again
