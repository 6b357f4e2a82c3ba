"""The command line run in this process, as the installed program would run it."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from keylayers.cli import main


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said; `err` on one line, without the frames that are drawn around it."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with a backdoored network's weights, clean and triggered images."""
    import numpy as np
    from safetensors.torch import save_file

    from keylayers.studies.image_victims import Backdoor, make_victim, victim
    from tests.papers.little_images import watched

    folder = tmp_path_factory.mktemp("vision")
    task, attack = watched().task, {"kind": "patch", "strength": 1.0, "share": 0.3}
    made = make_victim(folder, task=task.fields(), seed=0, attack=attack)
    found = victim(folder, task, 0, Backdoor(**attack), made["file"])
    save_file({name: value.contiguous() for name, value in found.model.state_dict().items()}, folder / "w.safetensors")
    parts, bad = found.parts, found.attacked()
    pixels = (bad.images * 255).round().byte().numpy()[:, 0]
    clean = [parts.reference, parts.calibration]
    np.savez(
        folder / "clean.npz",
        x=np.concatenate([one.pixels[:, 0] for one in clean]),
        y=np.concatenate([one.labels for one in clean]),
    )
    np.savez(folder / "bad.npz", x=pixels, y=bad.labels.numpy())
    np.savez(folder / "stream.npz", x=np.concatenate([parts.test.pixels[:60, 0], pixels[:40]]))
    return folder


@pytest.fixture
def plots() -> None:
    """Asks for the plots beside reports."""


@pytest.fixture(autouse=True)
def without_plots(request, monkeypatch) -> None:
    """Runs end with their page alone unless `plots` are asked for: drawing takes longer than all else of a tiny run."""
    if "plots" not in request.fixturenames:
        monkeypatch.setattr("keylayers.report.plots.draw", lambda collected, choice, folder: ())


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path) -> Callable[..., Result]:
    """Runs a command in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["keylayers", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return Result(int(stop.value.code or 0), out, " ".join(re.sub(r"[│╭╮╰╯─]", " ", err).split()))

    return run


@pytest.fixture
def score_words(world) -> tuple[object, ...]:
    """Options of a scoring run of a few steps."""
    return ("--model", world.model, "--data", world.data, "--steps", 3, "--batch-size", 4, "--rank", 2,
            "--max-length", 32, "--records", 24)  # fmt: skip


@pytest.fixture
def tune_words(score_words) -> tuple[object, ...]:
    """Options of a tuning run of a few steps."""
    return (*score_words, "--lr", "0.01")
