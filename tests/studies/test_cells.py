"""Cells: computed once, in any number of processes, resumed after an error."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keylayers.errors import BadInput
from keylayers.runs import open_run
from keylayers.studies.runner import Cell, run_cells, workers


def square(fields):
    if fields.get("fails"):
        raise BadInput(f"cell {fields['x']} cannot be computed")
    return {"value": fields["x"] ** 2, "process": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}


def cells(*numbers, **more):
    return [Cell("squares", {"x": x, **more}) for x in numbers]


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_the_cells_and_are_computed_once(processes, tmp_path):
    with open_run(tmp_path, "study", {}) as run, workers(processes) as pool:
        first = run_cells(cells(3, 1, 2), square, run, workers=pool)
        again = run_cells(cells(2, 3, 1), lambda fields: pytest.fail("computed twice"), run)
    assert [one["value"] for one in first] == [9, 1, 4]
    assert again == [first[2], first[0], first[1]]
    elsewhere = {one["process"] for one in first} - {os.getpid()}
    assert bool(elsewhere) == (processes > 1)
    assert processes == 1 or {one["threads"] for one in first} == {"1"}


@pytest.mark.parametrize("processes", [1, 2])
def test_what_was_done_before_an_error_is_kept(processes, tmp_path):
    asked = [*cells(1, 2), Cell("squares", {"x": 3, "fails": True}), *cells(4, 5, 6)]
    with open_run(tmp_path, "study", {}) as run:
        with pytest.raises(BadInput, match="cell 3"), workers(processes) as pool:
            run_cells(asked, square, run, workers=pool)
        kept = [cell.fields["x"] for cell in asked if run.has_part(cell.key)]
        assert set(kept) & {1, 2} and 3 not in kept and 6 not in kept
        assert [one["value"] for one in run_cells(cells(1, 2, 6), square, run)] == [1, 4, 36]


def test_the_environment_is_put_back(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with open_run(tmp_path, "study", {}) as run, workers(2) as pool:
        run_cells(cells(1, 2), square, run, workers=pool)
    assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ


def test_a_cell_is_known_by_all_its_fields_and_only_by_them():
    one, same = Cell("a", {"x": 1, "y": [2.5, "b"]}), Cell("a", {"y": [2.5, "b"], "x": 1})
    others = [Cell("a", {"x": 1}), Cell("b", one.fields), Cell("a", {"x": 1, "y": [2.5, "c"]})]
    assert one.key == same.key and len({one.key, *(other.key for other in others)}) == 4


def test_a_cell_asked_for_twice_is_an_error(tmp_path):
    with open_run(tmp_path, "study", {}) as run, pytest.raises(BadInput, match="asks twice"):
        run_cells(cells(1, 2, 1), square, run)


SLOW = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a background job ignores it
from keylayers.runs import open_run
from keylayers.studies.runner import Cell, run_cells, workers
from tests.studies.test_cells import sleep
if __name__ == "__main__":
    with open_run(sys.argv[1], "study", {}) as run, workers(2) as pool:
        run_cells([Cell("sleeps", {"x": x, "folder": sys.argv[1]}) for x in range(4)], sleep, run, workers=pool)
"""


def sleep(fields):
    (Path(fields["folder"]) / f"began-{os.getpid()}").touch()
    time.sleep(60)
    return {}


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_all_processes_end_with_the_one_that_started_them(sign, tmp_path):
    """Also where it is killed, and can do nothing about it any more."""
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stderr=subprocess.DEVNULL,
    )
    while len(began := list((tmp_path / "run").glob("began-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(sign)
    assert process.wait(timeout=20) != 0
    patience = time.monotonic() + (10 if sign == signal.SIGKILL else 0)
    for worker in (int(path.name.partition("-")[2]) for path in began):
        with pytest.raises(ProcessLookupError):
            while time.monotonic() <= patience:
                os.kill(worker, 0)
                time.sleep(0.05)
            os.kill(worker, 0)


def test_processes_serve_several_rounds(tmp_path):
    with open_run(tmp_path, "study", {}) as run, workers(2) as pool:
        rounds = [run_cells(cells(*numbers), square, run, workers=pool) for numbers in ((1, 2), (3, 4), (1, 5))]
    assert len({one["process"] for each in rounds for one in each}) <= 2
    assert run_cells([], square, run) == []


def frozen(fields):
    import gc

    return {"frozen": gc.get_freeze_count(), "process": os.getpid()}


def test_what_imports_left_is_put_aside_in_other_processes_alone(tmp_path):
    import gc

    here = gc.get_freeze_count()
    with open_run(tmp_path, "study", {}) as run, workers(2) as pool:
        asked = [Cell("frozen", {"x": x}) for x in range(8)]
        found = run_cells(asked, frozen, run, workers=pool)
    for process in {one["process"] for one in found}:
        counts = [one["frozen"] for one in found if one["process"] == process]
        assert counts[0] == 0 and all(count > 1000 for count in counts[1:])
    assert gc.get_freeze_count() == here
