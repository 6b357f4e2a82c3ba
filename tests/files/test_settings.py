"""Settings out of YAML: plain values under each name once."""

import os
from pathlib import Path

import pytest

from keylayers.errors import BadInput
from keylayers.files.settings import read_settings

REFUSED = {
    "refers to values by": "a: &a [x, x]\nb: [*a, *a]\n",
    "'steps' twice": "steps: 5\nsteps: 6\n",
    "is no YAML: month must be": "note: 2020-51-01\n",
    "is a date": "note: 2020-01-01\n",
    "is a list": "columns: [[a]]\n",
    "control character": 'model: "\\e[31m"\n',
    "is no YAML": "model: !!python/object/apply:os.getcwd []\n",
    "nested too deeply": "a: " + "[" * 5000,
    "must hold settings": "- a\n",
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_no_plain_setting_is_refused(tmp_path: Path, said: str) -> None:
    (tmp_path / "c.yaml").write_text(REFUSED[said])
    with pytest.raises(BadInput, match=f"^--config c.yaml.*{said}"):
        read_settings(tmp_path / "c.yaml", "--config c.yaml")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.yaml")
    with pytest.raises(BadInput, match="is a pipe"):
        read_settings(tmp_path / "c.yaml", "--config c.yaml")


def test_plain_settings_are_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "steps: 5\nlr: 1.0e-3\nset: {position: mean}\ncriteria: [a, b]\nplot:\nfresh: true\n"
    )
    assert read_settings(tmp_path / "c.yaml", "c.yaml") == {
        "steps": 5, "lr": 1e-3, "set": {"position": "mean"}, "criteria": ["a", "b"], "plot": None, "fresh": True
    }  # fmt: skip
