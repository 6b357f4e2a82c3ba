"""A run folder resumes what it holds, belongs to one process, and refuses everything else by name."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from keylayers.errors import BadInput
from keylayers.runs import Given, file_sha256, open_run, read_json, read_run, write_json
from keylayers.runs.seals import sealed_folder

ROOT = Path(__file__).parents[2]
SETTINGS = {"data": "alpaca", "lora": {"rank": 8, "alpha": 16}, "seeds": [0, 1]}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_part_is_computed_once_and_comes_back_as_json_keeps_it(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict:
        calls.append(1)
        return {"loss": 1.5, "pair": (1, 2)}

    for status in (None, "finished"):
        with open_run(tmp_path / "run", "score", SETTINGS) as run:
            assert run.earlier_status == status
            assert run.has_part("top:30%, seed 0") == (status is not None)
            assert run.part("top:30%, seed 0", compute) == {"loss": 1.5, "pair": [1, 2]}
    assert calls == [1]


def test_a_tensor_part_is_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        return {"a": torch.arange(3)}

    for _ in range(2):
        with open_run(tmp_path, "score", SETTINGS) as run:
            assert run.tensor_part("deltas", compute)["a"].tolist() == [0, 1, 2]
    assert calls == [1]


def test_a_part_that_fails_is_not_stored(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_run(tmp_path, "score", SETTINGS) as run:
        run.part("loss", lambda: {"loss": 1 / 0})
    with open_run(tmp_path, "score", SETTINGS) as run:
        assert run.earlier_status == "failed"
        assert run.part("loss", lambda: {"loss": 2.0}) == {"loss": 2.0}


def test_the_record_says_what_ran(tmp_path: Path) -> None:
    for _ in range(2):
        with open_run(tmp_path, "score", SETTINGS):
            assert read_run(tmp_path)["status"] == "running"
    record = read_run(tmp_path)
    assert (record["command"], record["settings"], record["status"]) == ("score", SETTINGS, "finished")
    assert len(record["sessions"]) == 2
    assert record["seconds"] == pytest.approx(sum(each["seconds"] for each in record["sessions"]), abs=1e-3)
    session = record["sessions"][-1]
    assert session["argv"] == sys.argv and session["versions"]["python"] and session["machine"]["cores"] >= 1
    assert session["machine"]["threads"] == torch.get_num_threads()


def test_failures_and_interrupts_are_recorded_and_raised_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), open_run(tmp_path / "a", "score", {}):
        raise ValueError("broken")
    record = read_run(tmp_path / "a")
    assert record["status"] == "failed" and record["sessions"][-1]["error"] == "ValueError: broken"
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "b", "score", {}) as run:
        run.part("loss", lambda: {"loss": 1.0})
        raise KeyboardInterrupt
    assert read_run(tmp_path / "b")["status"] == "interrupted"
    assert "To resume: run the same command again" in capsys.readouterr().err


def test_the_resume_line_is_the_command_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/keylayers", "tune", "--fresh", "--data", "my file.jsonl"])
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, "tune", {}):
        raise KeyboardInterrupt
    assert "To resume: keylayers tune --data 'my file.jsonl'" in capsys.readouterr().err


def test_other_settings_are_refused_with_each_difference(tmp_path: Path) -> None:
    with open_run(tmp_path, "score", SETTINGS) as run:
        run.part("loss", lambda: {"loss": 1.0})
    other = {"data": "gsm8k", "lora": {"rank": 8, "alpha": 32}, "extra": True}
    with pytest.raises(BadInput) as caught, open_run(tmp_path, "score", other):
        pass
    lines = str(caught.value).splitlines()
    assert "  data: stored 'alpaca', given 'gsm8k'" in lines
    assert "  lora.alpha: stored 16, given 32" in lines
    assert "  extra: not stored, given True" in lines
    assert "  seeds: stored [0, 1], not given" in lines
    assert not any("rank" in line for line in lines)
    assert "`out`" in lines[-1] and "`fresh`" in lines[-1]
    assert read_run(tmp_path)["status"] == "finished"


def test_a_file_that_changed_under_its_name_is_not_gone_on_with(tmp_path: Path) -> None:
    """Half a run on one file and half on another would be told as one."""
    data, folder = tmp_path / "my.data.jsonl", tmp_path / "run"
    data.write_text("one")
    given = Given((None, "bundled:llama"), (data, "bundled:pirate"))
    with open_run(folder, "score", {}, given=given) as run:
        assert run.settings == {"given": {str(data): file_sha256(data)}}
        run.part("loss", lambda: {"loss": 1.0})
    with open_run(folder, "score", {}, given=given) as run:
        assert run.has_part("loss")
    data.write_text("two")
    with pytest.raises(BadInput, match=rf"{data}: its content is not what it was when the run began\n"):
        open_run(folder, "score", {}, given=given).__enter__()
    data.unlink()
    with pytest.raises(BadInput, match=rf"{data}: is no longer there\n"):
        open_run(folder, "score", {}, given=given).__enter__()
    data.write_text("one")  # at another time
    with open_run(folder, "score", {}, given=given) as run:
        assert run.has_part("loss")


def test_a_folder_of_another_command_is_named_as_such(tmp_path: Path) -> None:
    """All its settings differ; to list them would hide why."""
    with open_run(tmp_path, "score", SETTINGS):
        pass
    told = r"holds a run of 'score', this is 'tune'; give another `out`"
    with pytest.raises(BadInput, match=told) as caught, open_run(tmp_path, "tune", {"data": "gsm8k"}):
        pass
    assert "stored" not in str(caught.value)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_start_that_left_nothing_does_not_keep_its_folder(tmp_path: Path, error, capsys) -> None:
    """A mistyped name, say; a run that left a part does."""
    with pytest.raises(error), open_run(tmp_path, "score", {"data": "alpacca"}):
        raise error
    assert ("nothing was finished yet. To resume: run the same command" in capsys.readouterr().err) == (
        error is KeyboardInterrupt
    )
    with pytest.raises(error), open_run(tmp_path, "score", {"data": "alpaca"}) as run:
        assert run.earlier_status is None
        run.part("loss", lambda: {"loss": 1.0})
        raise error
    told = "data: stored 'alpaca', given 'gsm8k'"
    with pytest.raises(BadInput, match=told), open_run(tmp_path, "score", {"data": "gsm8k"}):
        pass


@dataclass(frozen=True)
class Settings:
    rate: float
    layers: tuple[str, ...] = ("a",)


def test_settings_may_be_a_dataclass(tmp_path: Path) -> None:
    for _ in range(2):
        with open_run(tmp_path, "score", Settings(0.1)) as run:
            assert run.settings == {"rate": 0.1, "layers": ["a"]}
    with pytest.raises(BadInput, match=r"rate: stored 0\.1, given 0\.2"), open_run(tmp_path, "score", Settings(0.2)):
        pass


def test_fresh_empties_a_run_folder(tmp_path: Path) -> None:
    with open_run(tmp_path, "score", SETTINGS) as run:
        run.part("loss", lambda: {"loss": 1.0})
        run.log("step", loss=1.0)
        (tmp_path / "stage1" / "adapter").mkdir(parents=True)
        (tmp_path / "stage1" / "adapter" / "weights").write_text("x")
    with open_run(tmp_path, "tune", {"other": 1}, fresh=True) as run:
        assert run.earlier_status is None
        assert not run.has_part("loss")
        assert names(tmp_path) == {"run.json", ".lock", "log.jsonl"}
        assert [event["event"] for event in run.events()] == ["started"]


def test_fresh_deletes_what_runs_write_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    with open_run(run, "score", SETTINGS) as opened:
        opened.part("loss", lambda: {"loss": 1.0})
        with sealed_folder(run / "tuned") as folder:
            (folder / "weights").write_text("x")
    scores = '{"format": "keylayers/scores/1", "criterion": "random"}'
    (outside / "parts").mkdir(parents=True)
    for name in ("notes.txt", "parts/notes.txt", "tuned/added.md", "mine/parts/a.json", "my-random.json", "data.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(scores)
    (run / "random.json").write_text(scores)
    (outside / "parts" / "theirs.json").write_text("{}")
    (run / "checkpoints").symlink_to(outside / "parts")
    (run / "mine" / "link").symlink_to(outside)
    with open_run(run, "score", SETTINGS, fresh=True) as opened:
        assert not opened.has_part("loss")
    left = {path.relative_to(run).as_posix() for path in run.rglob("*") if not path.is_dir()}
    theirs = {"notes.txt", "parts/notes.txt", "tuned/added.md", "mine/parts/a.json", "my-random.json", "data.json"}
    assert left == {*theirs, "run.json", ".lock", "log.jsonl"} and (run / "mine" / "link").is_symlink()
    assert (outside / "parts" / "theirs.json").exists()
    assert "kept in" in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"experiment": "mine"}', '{"format": "other/run/1"}', "[]", "not JSON"])
def test_the_run_of_another_program_is_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(BadInput, match="that keylayers did not write") as told, open_run(tmp_path, "a", {}, fresh=True):
        pass
    assert "fresh" not in str(told.value) and names(tmp_path) == {"run.json", "precious.txt"}


def test_fresh_mends_a_damaged_record(tmp_path: Path) -> None:
    with open_run(tmp_path, "score", SETTINGS):
        pass
    (tmp_path / "run.json").write_text('{\n  "format": "keylayers/run/1",\n  "comm')
    with pytest.raises(BadInput, match="damaged"), open_run(tmp_path, "score", SETTINGS):
        pass
    with open_run(tmp_path, "score", SETTINGS, fresh=True) as run:
        assert run.earlier_status is None


def test_a_clearing_that_was_killed_goes_on(tmp_path: Path) -> None:
    with open_run(tmp_path, "score", SETTINGS) as run:
        run.part("loss", lambda: {"loss": 1.0})
    write_json(tmp_path / "run.json", {**read_run(tmp_path), "status": "clearing"})
    with open_run(tmp_path, "score", SETTINGS) as run:
        assert run.part("loss", lambda: {"loss": 2.0}) == {"loss": 2.0}


@pytest.mark.parametrize(
    "changed",
    [{"settings": {"given": ["a"]}}, {"settings": {"given": {"a": 3}}}, {"stamps": {"a": "b"}}, {"seconds": 10**400}],
)
def test_a_record_that_somebody_rewrote_and_sealed_is_refused(tmp_path: Path, changed: dict) -> None:
    with open_run(tmp_path, "score", {}):
        pass
    record = json.loads((tmp_path / "run.json").read_text()) | changed
    del record["sha256"]
    write_json(tmp_path / "run.json", record)
    with pytest.raises(BadInput, match=r"run\.json' is damaged"):
        read_run(tmp_path)


def test_fresh_deletes_the_damaged_scores_of_the_criteria_that_the_run_was_asked_for(tmp_path: Path) -> None:
    """... and leaves a file of any other name, which may be somebody's."""
    with open_run(tmp_path, "score", {"criteria": ["fisher"]}):
        (tmp_path / "fisher.json").write_text('{"format": "keylayers/sco')
        (tmp_path / "fishes.json").write_text('{"format": "keylayers/sco')
    with open_run(tmp_path, "score", {"criteria": ["fisher"]}, fresh=True):
        assert names(tmp_path) >= {"fishes.json"} and "fisher.json" not in names(tmp_path)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_is_not_a_run_folder_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / ".x.tmp").write_text("x")
    with pytest.raises(BadInput, match=r"thesis\.tex but no run\.json"), open_run(tmp_path, "score", {}, fresh=fresh):
        pass
    assert names(tmp_path) == {"thesis.tex", ".x.tmp"}


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    tmp_path.joinpath(".lock").write_text("123\n")
    tmp_path.joinpath(".run.json.01234567.tmp").write_text("{")
    with open_run(tmp_path, "score", {}):
        assert names(tmp_path) == {"run.json", ".lock", "log.jsonl"}


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    with open_run(tmp_path, "score", {}) as run:
        run.part("loss", lambda: {"loss": 1.0})
    path = tmp_path / "parts" / "loss.json"
    path.write_text(path.read_text().replace("1.0", "0.5"))
    with (
        pytest.raises(BadInput, match=r"loss\.json' does not match its sha256"),
        open_run(tmp_path, "score", {}) as run,
    ):
        run.part("loss", lambda: {"loss": 1.0})


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", ".hidden", "x" * 201])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with open_run(tmp_path, "score", {}) as run:
        for use in (lambda: run.part(name, dict), lambda: run.checkpoint(name)):
            with pytest.raises(BadInput, match="name"):
                use()


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    for path in (tmp_path / "run", tmp_path / "run" / "inner"):
        with pytest.raises(BadInput, match="give another `out`"), open_run(path, "score", {}):
            pass
    assert (tmp_path / "run").read_text() == "x"


def test_a_disk_that_fills_up_keeps_what_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(BadInput, match="the disk is full"), open_run(tmp_path, "score", {}) as run:
        run.part("first", lambda: {"loss": 1.0})
        monkeypatch.setattr(os, "fsync", full)
        run.part("second", lambda: {"loss": 2.0})
    monkeypatch.undo()
    with open_run(tmp_path, "score", {}) as run:
        assert run.earlier_status == "running"  # the failure itself could not be written either
        assert run.has_part("first") and not run.has_part("second")


HOLDER = """
import sys, time
from keylayers.runs import open_run
with open_run(sys.argv[1], "score", {}) as run:
    print("open", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    return process


def test_two_processes_cannot_share_a_folder_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(BadInput, match=f"in use by process {process.pid}"), open_run(tmp_path, "score", {}):
            pass
        process.kill()
        process.wait()
    with open_run(tmp_path, "score", {}) as run:
        assert run.earlier_status == "running"


STARTING = """
import os, subprocess, sys
from keylayers.runs import lock, open_run
with open_run(sys.argv[1], "score", {}):
    descriptor = next(iter(lock._held))
    os.set_inheritable(descriptor, True)
    subprocess.Popen(["sleep", sys.argv[2]], pass_fds=[descriptor], stdout=subprocess.DEVNULL)
    print("open", flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("seconds", "frees"), [("0.4", True), ("3.5", False)])
def test_a_program_that_a_killed_run_was_starting_keeps_its_folder_only_for_a_moment(tmp_path, seconds, frees):
    command = [sys.executable, "-c", STARTING, str(tmp_path), seconds]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "open\n" and done.returncode == -9
    if frees:
        with open_run(tmp_path, "score", {}) as run:
            assert run.earlier_status == "running"
    else:
        with pytest.raises(BadInput, match="in use by process"), open_run(tmp_path, "score", {}):
            pass


def test_the_same_process_cannot_open_a_folder_twice(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, "score", {}),
        pytest.raises(BadInput, match="in use"),
        open_run(tmp_path, "score", {}),
    ):
        pass
    assert read_run(tmp_path)["status"] == "finished"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_is_recorded_as_an_interrupt(tmp_path: Path, number: int) -> None:
    with holder(tmp_path) as process:
        process.send_signal(number)
        errors = process.communicate(timeout=20)[1]
    assert process.returncode != 0
    assert "To resume" in errors
    assert read_run(tmp_path)["status"] == "interrupted"


FORKER = """
import os, sys, time
from keylayers.runs import open_run
with open_run(sys.argv[1], "score", {}) as run:
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_parent(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", FORKER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        with open_run(tmp_path, "score", {}) as run:
            assert run.earlier_status == "running"
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_new_package_versions_are_noted_on_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_run(tmp_path, "score", {}):
        pass
    record = read_run(tmp_path)
    record["sessions"][-1]["versions"]["numpy"] = "0.1"
    write_json(tmp_path / "run.json", record)
    with open_run(tmp_path, "score", {}):
        assert "numpy: stored '0.1'" in capsys.readouterr().err


def test_log_events_of_all_sessions_are_kept(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        with open_run(tmp_path, "score", {}) as run:
            run.log("step", loss=value)
    with open_run(tmp_path, "score", {}) as run:
        assert [event["loss"] for event in run.events() if event["event"] == "step"] == [1.0, 2.0]
        times = [event["time"] for event in run.events()]
        assert times == sorted(times) and abs(times[-1] - time.time()) < 60
    assert read_json(tmp_path / "run.json")["status"] == "finished"
