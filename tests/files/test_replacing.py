"""A file or folder is whole or absent; what the killed left is swept, and nothing of others."""

import errno
import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from keylayers.errors import BadInput
from keylayers.files import atomic as module
from keylayers.files.atomic import remove, remove_leftovers, replacing, replacing_folder, scratch_folder, writing


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def test_leftovers_of_the_same_file_are_swept_and_all_others_stay(tmp_path: Path) -> None:
    kept = {".a.json.12345678.tmp", ".b.json.0123abcd.tmp", ".a.json.tmp", "a.json.0123abcd.tmp"}
    for name in (*kept, ".a.json.0123abcd.tmp"):
        (tmp_path / name).write_text("half")
    with (tmp_path / ".a.json.12345678.tmp").open("r+") as living:
        fcntl.flock(living, fcntl.LOCK_EX)  # as its writer does
        write(tmp_path / "a.json", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "a.json"}


def test_names_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    for name in ("a" * 255, "層" * 85):
        write(tmp_path / name, "whole")
    assert len(list(tmp_path.iterdir())) == 2


def test_without_locks_only_old_leftovers_are_swept(tmp_path: Path, monkeypatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", none)
    for name, age in ((".a.00000000.tmp", 0), (".a.11111111.tmp", 2 * module.PATIENCE)):
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (os.stat(tmp_path / name).st_mtime - age,) * 2)
    write(tmp_path / "a", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a", ".a.00000000.tmp"}


def test_a_folder_takes_the_place_of_the_old_one_at_once(tmp_path: Path) -> None:
    place, left = tmp_path / "adapter", tmp_path / ".adapter.0123abcd.tmp"
    for root in (place, left):
        (root / "inner").mkdir(parents=True)
        (root / "inner" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing_folder(place) as temporary:
        (temporary / "new").write_text("half")
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"] and (place / "inner" / "old").exists()
    with replacing_folder(place) as temporary:
        (temporary / "new").write_text("new")
        assert (place / "inner" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert [path.name for path in place.iterdir()] == ["new"]


def test_sweeping_and_removing_follow_no_links(tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    for folder in (outside, run):
        folder.mkdir()
    (outside / ".x.0123abcd.tmp").write_text("theirs")
    (run / "link").symlink_to(outside)
    (run / ".a.0123abcd.tmp").symlink_to(outside)
    (run / ".b.0123abcd.tmp").mkdir()
    assert remove_leftovers(run) == 2 and (outside / ".x.0123abcd.tmp").exists()
    remove(run / "link")
    assert list(run.iterdir()) == [] and outside.is_dir()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full; free some space"),
        (RuntimeError("[enforce fail at inline_container.cc:595] . PytorchStreamWriter failed"), "cannot write"),
        (RuntimeError("basic_ios::clear: iostream error"), "iostream error"),
    ],
)
def test_what_libraries_raise_while_they_write_is_said_in_words(error, said, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=said), writing(tmp_path / "adapter"):
        raise error


def test_a_temporary_folder_that_cannot_be_made_is_no_traceback(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(BadInput, match=r"cannot make a temporary folder .*set TMPDIR"), scratch_folder():
        pass
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(BadInput, match="cannot write a temporary file into"), scratch_folder() as folder:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "x"))
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_of_writing_passes(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"), writing(tmp_path / "adapter"):
        raise RuntimeError("shapes do not match")
