"""Locks where the file system has none, and locks on places where nothing is yet."""

import errno
import fcntl
import json
import os
import platform
from pathlib import Path

import pytest

from keylayers.errors import BadInput
from keylayers.runs.lock import WITHOUT_LOCKS, locked, locked_beside

DEAD = 2**22 + 7  # beyond what Linux gives


@pytest.fixture(params=sorted(WITHOUT_LOCKS))
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", missing)


def owned(folder: Path, process: int, machine: str) -> Path:
    marker = folder / ".lock.owner"
    marker.write_text(json.dumps({"process": process, "machine": machine}))
    return marker


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_file_names_the_owner_and_goes_with_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        marker = json.loads((tmp_path / ".lock.owner").read_text())
        assert (marker["process"], marker["machine"]) == (os.getpid(), platform.node())
        with pytest.raises(BadInput, match=f"in use by process {os.getpid()} of machine"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.usefixtures("no_locks")
def test_a_dead_owner_of_this_machine_is_replaced_and_one_of_another_is_not(tmp_path: Path) -> None:
    owned(tmp_path, DEAD, platform.node())
    with locked(tmp_path):
        pass
    marker = owned(tmp_path, DEAD, "elsewhere")
    with pytest.raises(BadInput, match=f"delete '{marker}' if that process is gone"), locked(tmp_path):
        pass
    marker.unlink()
    with locked(tmp_path):
        pass


def test_another_failure_of_a_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(BadInput, match=r"cannot lock .*: Input/output error"), locked(tmp_path):
        pass


def test_a_place_is_locked_before_anything_is_there(tmp_path: Path) -> None:
    place = tmp_path / "new" / "checkpoint"
    with locked_beside(place):
        with pytest.raises(BadInput, match=f"{place}' is in use by process {os.getpid()}"), locked_beside(place):
            pass
        assert not place.exists()
    assert list(place.parent.iterdir()) == []
