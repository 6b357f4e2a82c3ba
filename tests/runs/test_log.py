"""The log keeps every whole line, whatever a killed process left at its end."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import BadInput
from keylayers.runs import read_log
from keylayers.runs.log import append_event, damaged_lines


@given(cut=st.integers(1, 200))
def test_a_torn_last_line_is_left_out_and_the_next_event_is_whole(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    for step in range(3):
        append_event(path, "step", {"step": step, "text": "a\nb"})
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = [event["step"] for event in read_log(path)]
    assert kept == list(range(len(kept)))
    append_event(path, "step", {"step": 99})
    assert [event["step"] for event in read_log(path)] == [*kept, 99]


def test_a_loss_that_stopped_being_a_number_is_logged_as_text(tmp_path: Path) -> None:
    append_event(tmp_path / "log.jsonl", "step", {"loss": math.nan, "losses": np.array([1.0, np.inf]), "out": tmp_path})
    (event,) = read_log(tmp_path / "log.jsonl")
    assert (event["loss"], event["losses"], event["out"]) == ("nan", [1.0, "inf"], str(tmp_path))


def test_a_damaged_line_is_left_out_and_named(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for step in range(3):
        append_event(log, "step", {"loss": 1.25 + step})
    log.write_text(log.read_text().replace("2.25", "2.35"))
    assert [event["loss"] for event in read_log(log)] == [1.25, 3.25]
    assert damaged_lines(log) == [2]


def test_no_file_is_no_events(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.jsonl") == []


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot write the log"):
        append_event(tmp_path, "step", {})
