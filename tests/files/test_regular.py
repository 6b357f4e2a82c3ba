"""What is opened: regular files alone, and a pipe in a folder is seen before anything waits for it."""

import os
import socket
from pathlib import Path

import pytest

from keylayers.errors import BadInput
from keylayers.files import check_folder, check_regular


def test_what_is_no_regular_file_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        for name, kind in {"pipe": "a pipe", "link": "a pipe", "s": "a socket", ".": "a folder"}.items():
            with pytest.raises(BadInput, match=kind):
                check_regular(tmp_path / name)
    with pytest.raises(BadInput, match="a device"):
        check_regular("/dev/zero")


@pytest.mark.parametrize("path", ["absent", "x" * 300, "a\0b", "\ud800"])
def test_a_path_that_leads_nowhere_is_refused(path: str) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        check_regular(path)


def test_a_folder_in_which_a_library_would_wait_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "sub").mkdir()
    assert check_folder(tmp_path, within=("sub", "absent")) == tmp_path
    os.mkfifo(tmp_path / "sub" / "default.jinja")
    assert check_folder(tmp_path) == tmp_path
    with pytest.raises(BadInput, match=r"default\.jinja is a pipe"):
        check_folder(tmp_path, within=("sub",))
