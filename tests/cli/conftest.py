"""The command line run in this process, as the installed program would run it."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from keylayers.cli import main
from tests.recipes.small import World, make


@dataclass(frozen=True)
class Result:
    """How a command ended and what it said; `err` on one line, without the frames that are drawn around it."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return make(tmp_path_factory.mktemp("world"))


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
