"""How commands start and end: quickly, without torch where it is not needed, and with the right status."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import keylayers
from keylayers.runs import read_run
from keylayers.scores import save
from tests.report.examples import scores

PROBE = """
import json, sys
from keylayers.cli import main
sys.argv = ["keylayers", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit as stop:
    code = stop.code
heavy = [name for name in ("torch", "transformers", "peft", "datasets", "scipy", "matplotlib") if name in sys.modules]
print(json.dumps({"code": code or 0, "heavy": heavy}), file=sys.stderr)
"""


ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def probed(words: list[str]) -> tuple[dict, str]:
    """What a command needed in a process of its own, and its results."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(words)], env=ENVIRONMENT, capture_output=True, text=True
    )
    return json.loads(done.stderr.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("words", [["--help"], ["tune", "--help"], ["criteria"], ["--version"], []])
def test_help_answers_without_heavy_libraries(words):
    """What that makes it take is in benchmarks/starting.py."""
    found, _ = probed(words)
    assert found["heavy"] == [] and found["code"] in (0, 2)


def test_comparing_files_needs_no_torch(cli):
    for seed in (1, 2):
        save(scores(seed), f"{seed}.json")
    found, shown = probed(["compare", "1.json", "2.json"])
    assert found["code"] == 0 and not {"torch", "transformers"} & set(found["heavy"])
    assert "chance" in shown


def test_the_version_and_every_command_with_its_purpose(cli):
    assert cli("--version").out.strip() == f"keylayers {keylayers.__version__}"
    shown = cli("--help").out
    for command in ("demo", "layers", "score", "compare", "tune", "revert", "criteria"):
        assert command in shown
        assert "Usage: keylayers " + command in cli(command, "--help").out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scoer"], "No such command 'scoer'"),
        (["layers"], "Missing argument"),
        (["tune", "--stepz", "3"], "No such option: --stepz"),
        (["tune", "--steps", "many"], "Invalid value for '--steps'"),
        (["revert", "--model", "x"], "Missing option"),
    ],
)
def test_a_misspelt_command_line_says_what_is_wrong(cli, words, said):
    result = cli(*words)
    assert result.code == 2 and said in result.err and "Traceback" not in result.err


def test_a_request_to_end_is_obeyed_in_order_wherever_a_command_is(cli, monkeypatch):
    from keylayers.cli import show

    monkeypatch.setattr(show, "show_criteria", lambda: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert cli("criteria").code == 130
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_ctrl_c_ends_the_process_while_it_tidies_up(cli, monkeypatch):
    at_exit = []
    monkeypatch.setattr(atexit, "register", lambda *call: at_exit.append(call))
    assert cli("criteria").code == 0
    assert at_exit == [(signal.signal, signal.SIGINT, signal.SIG_DFL)]


def test_ctrl_c_ends_with_130_and_how_to_resume(cli, score_words, monkeypatch):
    from keylayers.recipes import score as recipe

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "score_layers", stopped)
    result = cli("score", "random", *score_words, "--out", "run", "--fresh")
    assert result.code == 130
    assert "interrupted; nothing was finished yet. To resume: keylayers score random" in result.err
    assert "--fresh" not in result.err
    assert read_run("run")["status"] == "interrupted"


@pytest.mark.long
def test_a_real_interrupt_in_the_middle_of_training_can_be_resumed(cli, world, score_words, tmp_path):
    words = [str(word) for word in ("score", "random", "delta_norm", *score_words, "--out", "run")]
    words[words.index("--steps") + 1] = "100000"
    child = subprocess.Popen(
        [sys.executable, "-m", "keylayers", *words], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("run/stage1/checkpoint-*/seal.json")):
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.1)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=60)[1]
    finally:
        child.kill()
    assert child.returncode == 130 and "Traceback" not in said
    assert "To resume: keylayers score random delta_norm" in said
    assert not list(tmp_path.glob("run/*_norm.json"))
