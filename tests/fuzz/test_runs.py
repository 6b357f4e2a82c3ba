"""Run folders: records, parts, tensors, logs, states, and the report made of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keylayers.league.agreement import ALL, read_gains
from keylayers.recipes.early_stopping import settling_of
from keylayers.report.collect import collect_runs
from keylayers.report.page import render
from keylayers.runs import open_run, read_json, read_log, read_run, read_tensors, write_json
from keylayers.runs.checkpoint import Checkpoint
from keylayers.scores import save
from keylayers.training.states import newest_whole, read_history, seal_state
from tests.fuzz.mutations import damaged, few, mutated, only_ours, text_of
from tests.scores.examples import network, noise

SETTINGS = {"inputs": {"model": "m", "data": "d.jsonl"}, "criteria": ["x"], "steps": 3, "given": {"d.jsonl": "00ff"}}


def make(folder: Path) -> None:
    """A small finished run with one file of each sort."""
    with open_run(folder, "score", SETTINGS) as run:
        run.part("stage1", lambda: {"losses": [2.0, 1.0], "seconds": 1.5, "steps": 2})
        run.tensor_part("gates", lambda: {"gates": torch.zeros(3)})
        run.checkpoint("loop").save(2, {"state": torch.ones(2)}, {"loss": 1.0})
        run.log("training", step=1, loss=2.0)
        save(noise(network(2)), folder / "by_hand.json")
        state = folder / "stage1" / "checkpoint-2"
        state.mkdir(parents=True)
        (state / "trainer_state.json").write_text(json.dumps({"global_step": 2, "log_history": [{"loss": 1.0}]}))
        seal_state(state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nobody damages."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    make(folder)
    return folder


def copied(whole: Path) -> Path:
    """A copy, in place of the last one."""
    run = whole.with_name("run")
    shutil.rmtree(run, ignore_errors=True)
    return Path(shutil.copytree(whole, run))


def use(run: Path) -> None:
    """All readers of a run."""
    only_ours(lambda: read_run(run))
    only_ours(lambda: read_log(run / "log.jsonl"))
    for path in run.rglob("*.json"):
        only_ours(lambda path=path: read_json(path))
    for path in run.rglob("*.safetensors"):
        only_ours(lambda path=path: read_tensors(path))
    only_ours(lambda: Checkpoint(run / "checkpoints" / "loop").load())
    only_ours(lambda: settling_of(run))
    if (state := only_ours(lambda: newest_whole(run / "stage1"))) is not None:
        only_ours(lambda: read_history(state))
    only_ours(lambda: render(collect_runs(run)))
    only_ours(lambda: resume(run))


def resume(run: Path) -> None:
    with open_run(run, "score", SETTINGS) as opened:
        opened.part("stage1", lambda: {"losses": []})
        opened.tensor_part("gates", lambda: {"gates": torch.zeros(3)})
        opened.events()


NAMES = (
    *("run.json", "log.jsonl", "parts/stage1.json", "by_hand.json", "parts/gates.safetensors"),
    *("checkpoints/loop/000000002.safetensors", "stage1/checkpoint-2/seal.json"),
    "stage1/checkpoint-2/trainer_state.json",
)


@pytest.mark.parametrize("name", NAMES)
@few(2)
@given(data=st.data())
def test_damaged_files_of_runs(whole, name, data):
    run = copied(whole)
    (run / name).write_bytes(data.draw(damaged((run / name).read_bytes())))
    use(run)


@pytest.mark.parametrize("name", ["run.json", "parts/stage1.json", "stage1/checkpoint-2/seal.json"])
@few(2)
@given(data=st.data())
def test_files_of_runs_that_say_something_else_and_seal_it(whole, name, data):
    run = copied(whole)
    stored = json.loads((run / name).read_bytes())
    stored.pop("sha256", None)
    changed = data.draw(mutated(stored))
    if isinstance(changed, dict):
        only_ours(lambda: write_json(run / name, changed))
    else:
        (run / name).write_bytes(text_of(changed))
    use(run)


TRAINED = {"trained": [{"test": 1.5}, {"test": 1.4}]}
LEAGUE = {"games": [{"before": {"test": 2.0}, "arms": {ALL: TRAINED, "midpoint": TRAINED}}]}


@few()
@given(data=st.data())
def test_leagues(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "league.json"
    content = data.draw(mutated(LEAGUE))
    if isinstance(content, dict) and data.draw(st.booleans()):
        only_ours(lambda: write_json(path, content))
    else:
        path.write_bytes(text_of(content))
    only_ours(lambda: read_gains(path))
