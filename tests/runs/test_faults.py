"""Killed at any moment (SIGKILL), a resumed run ends with the numbers of an uninterrupted one and no torn file."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).with_name("faults.py")


def uninterrupted() -> list[float]:
    state = [1.0] * 3
    for step in range(1, 3):
        state = [math.sin(value * 1.7 + step) for value in state]
    return state


def harness(folder: Path, *mode: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(FAULTS), str(folder), *mode], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_at_every_file_system_call_in_turn(tmp_path: Path) -> None:
    found = harness(tmp_path, "crash-points")
    assert found["kills"] > 20
    assert found["state"] == pytest.approx(uninterrupted(), rel=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments(tmp_path: Path, seed: int) -> None:
    found = harness(tmp_path, "random", str(seed))
    assert found["kills"] == 15
    assert found["state"] == pytest.approx(uninterrupted(), rel=1e-12)
