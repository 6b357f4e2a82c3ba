"""What a folder holds is known by the files that are read from it, and by their content alone."""

import os
import shutil
from pathlib import Path

import pytest

from keylayers.errors import BadInput
from keylayers.files import digests
from keylayers.files.digests import content_of, contents, file_sha256


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    for name in (
        "config.json",
        "model-1.safetensors",
        "tokenizer.json",
        "vocab.txt",
        "README.md",
        "optimizer.pt",
        "x.bin",
    ):
        (folder / name).write_text(name)
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_text("an earlier state")
    (folder / "my.json").write_text('{\n  "format": "keylayers/scores/1",')
    return folder


def test_of_a_checkpoint_what_loaders_open_counts(tmp_path: Path) -> None:
    found = contents(checkpoint(tmp_path / "m"))
    assert list(found) == ["config.json", "model-1.safetensors", "tokenizer.json", "vocab.txt"]
    assert found["vocab.txt"].sha256 == file_sha256(tmp_path / "m" / "vocab.txt")


def test_of_a_data_folder_every_file_counts_but_no_run_inside(tmp_path: Path) -> None:
    for name in ("train/0.parquet", "train/1.parquet", "state.json", ".cache/x", "out/run.json", "out/parts/a.json"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.parquet").write_text("linked")
    (tmp_path / "d" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "d")
    assert sorted(contents(tmp_path / "d")) == ["more/2.parquet", "state.json", "train/0.parquet", "train/1.parquet"]


def test_copies_links_and_times_make_no_difference(tmp_path: Path) -> None:
    first = contents(checkpoint(tmp_path / "m"))
    shutil.copytree(tmp_path / "m", tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    os.utime(tmp_path / "copy" / "model-1.safetensors", (1, 1))
    again = contents(tmp_path / "link", first)
    assert {name: one.sha256 for name, one in again.items()} == {name: one.sha256 for name, one in first.items()}


def test_an_untouched_file_is_not_read_again_and_a_touched_one_is(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "weights"
    file.write_text("one")
    assert content_of(file).stamp == ()  # just written: a clock that ticks in steps may not show the next change
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    settled = content_of(file)
    monkeypatch.setattr(digests, "file_sha256", lambda path: "read")
    assert content_of(file, settled) is settled
    was = file.stat()
    file.write_text("two")
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))  # same size, same time
    assert content_of(file, settled).sha256 == "read"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read '.*gone'"):
        content_of(tmp_path / "gone")
