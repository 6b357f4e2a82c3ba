"""A scoring run that is killed in stage 1 and in stage 2 at seeded moments and resumed until it ends.

Run in a process of its own (it forks): python tests/recipes/killed.py FOLDER [--clock]
With --clock each run is also killed after a random time, a moment that differs with the machine's load.
Prints one JSON object: the scores of an uninterrupted run, of the resumed ones, and how often it was killed.
"""

import json
import os
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch

from keylayers import criteria
from keylayers.files.atomic import TEMPORARY
from keylayers.recipes import evidence
from keylayers.recipes import score as recipe
from keylayers.runs import git_commit, open_run, versions
from keylayers.scores.files import load
from keylayers.training import stage_one
from keylayers.training import trainer as training
from tests.small_world import World, make, request
from tests.training.killed import attempt, before_call

torch.set_num_threads(1)
CRITERIA = ("learned_mask", "path_integral")


def work(folder: Path) -> None:
    """The scoring run."""
    world = World(folder.parent / "model", folder.parent / "data.jsonl")
    asked = request(world, *CRITERIA, settings={"steps": 8, "save_every": 2, "seeds": 2, "points": 2})
    with open_run(folder, "score", asked) as run:
        recipe.score_layers(asked, run)


def killed_before(place: object, name: str, number: int):
    """A run killed before the `number`-th call of a function."""
    return before_call(place, name, number, work)


def main() -> None:
    top, by_clock = Path(sys.argv[1]), "--clock" in sys.argv
    make(top)
    git_commit(), versions()  # cached before forking
    for name in CRITERIA:
        criteria.get(name)  # imported before forking
    assert attempt(work, top / "whole")
    victims = [
        [killed_before(training, "seal_state", 2)],  # stage 1, its second state not sealed
        [killed_before(stage_one, "save_adapter", 1)],  # trained, nothing stored
        [killed_before(evidence, "forget", 1), killed_before(torch.optim.Adam, "step", 3)],  # stage 2, before any state
        [killed_before(torch.optim.Adam, "step", 6), killed_before(torch.optim.Adam, "step", 5)],
        [killed_before(os, "replace", number) for number in (3, 9, 4)],  # while a file is put in place
    ]
    moments, resumed, kills = random.Random(1), [], 0
    for number, runs in enumerate(victims):
        folder = top / str(number)
        for run in runs:
            kills += not attempt(run, folder)
        if by_clock:  # another moment each time; may end first
            kills += not attempt(work, folder, moments.uniform(0.1, 1.0))
        assert attempt(work, folder)
        resumed.append(values(folder))
        assert not list(folder.rglob(f".*{TEMPORARY}"))
    print(json.dumps({"whole": values(top / "whole"), "resumed": resumed, "kills": kills}))


def values(folder: Path) -> list[list[float]]:
    return [load(folder / f"{name}.json").values.tolist() for name in CRITERIA]


if __name__ == "__main__":
    main()
