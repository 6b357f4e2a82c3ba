"""A stage 1 that stops early, killed while it trains, looks and stores, and resumed until it ends.

Run in a process of its own (it forks): python tests/recipes/killed_settling.py FOLDER
Prints one JSON object: stop, agreement, scores and adapter of an uninterrupted run and of the resumed ones; kills.
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch

from keylayers import criteria
from keylayers.recipes import early_stopping, evidence
from keylayers.recipes import score as recipe
from keylayers.runs import git_commit, open_run, versions
from keylayers.scores.files import load
from keylayers.scores.rank_convergence import Rule
from keylayers.training import stage_one
from keylayers.training import trainer as training
from tests.small_world import World, make, request
from tests.training.killed import attempt, before_call

torch.set_num_threads(1)
TRAINING = training.TrainSettings(steps=20, batch_size=4, learning_rate=1e-2, save_every=2)


def work(folder: Path) -> None:
    """The scoring run."""
    world = World(folder.parent / "model", folder.parent / "data.jsonl")
    early = early_stopping.StopEarly(Rule(target=0.3, draws=100))
    inputs = world.inputs(held_out=16)
    asked = request(world, "path_integral", inputs=inputs, stage_one=TRAINING, stop_early=early)
    with open_run(folder, "score", asdict(asked)) as run:
        recipe.score_layers(asked, run)


def result(folder: Path) -> dict[str, Any]:
    """All that must not depend on whether a run was killed."""
    found = early_stopping.settling_of(folder)
    assert found is not None
    adapter = (folder / "stage1" / "adapter" / "adapter_model.safetensors").read_bytes()
    scores = load(folder / "path_integral.json")
    kept = {key: found[key] for key in ("stopped_after", "steps", "settled", "curve")}
    return {**kept, "scores": scores.values.tolist(), "adapter": hashlib.sha256(adapter).hexdigest()}


def main() -> None:
    top = Path(sys.argv[1])
    make(top)
    git_commit(), versions()  # cached before forking
    criteria.get("path_integral")  # imported before forking
    assert attempt(work, top / "whole")
    victims = [
        # the second look's state, then its adapter; looked, and nothing stored; all decided, the states still there
        [
            (training, "seal_state", 2),
            (stage_one, "save_adapter", 1),
            (early_stopping, "moved", 1),
            (evidence, "forget", 1),
        ],
        [(os, "replace", number) for number in (6, 5)],  # while a file is put in place
    ]
    resumed, kills = [], 0
    for number, places in enumerate(victims):
        folder = top / str(number)
        for place in places:
            kills += not attempt(before_call(*place, work), folder)
        assert attempt(work, folder)
        resumed.append(result(folder))
    print(json.dumps({"whole": result(top / "whole"), "resumed": resumed, "kills": kills}))


if __name__ == "__main__":
    main()
