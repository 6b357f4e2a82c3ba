"""LoRA training that is killed at seeded moments, in the middle of a save among them, and resumed until it ends.

Run in a process of its own (it forks, and a test worker has threads): python tests/training/killed.py FOLDER [--clock]
With --clock each run is also killed after a random time, a moment that differs with the machine's load.
Prints one JSON object: digest of the weights of an uninterrupted run, of the resumed ones, and how often it was killed.
"""

import gc
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ["OMP_NUM_THREADS"] = "1"

import datasets  # noqa: F401  what training imports when it needs it: once, before the forks
import peft  # noqa: F401
import torch
from transformers import Trainer  # noqa: F401

from keylayers.training import states
from keylayers.training import trainer as module
from keylayers.training.adapters import LoraSettings, attach_lora
from tests.tiny_models import build
from tests.training.small import block, examples

torch.set_num_threads(1)
SETTINGS = module.TrainSettings(steps=8, batch_size=4, learning_rate=1e-2, save_every=2)
LORA = LoraSettings(rank=2, dropout=0.3)  # dropout: the state of the random numbers counts


def work(folder: Path, report: module.Report | None = None) -> None:
    """Trains and writes the digest of the trained tensors."""
    adapted = attach_lora(build("llama"), block(build("llama"), 0, 2).chosen, LORA, seed=0)
    module.train(adapted, examples(), SETTINGS, folder=folder, report=report)
    digest = hashlib.sha256()
    for name, value in sorted(states.changing_tensors(adapted).items()):
        digest.update(name.encode() + value.detach().numpy().tobytes())
    (folder / "digest").write_text(digest.hexdigest())


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(step: int) -> Callable[[Path], None]:
    """A run that is killed right after a step."""
    return lambda folder: work(folder, lambda done, *_: die() if done == step else None)


def before_call(place: object, name: str, number: int, work: Callable[[Path], None] = work) -> Callable[[Path], None]:
    """A run that is killed before the `number`-th call of a function."""

    def run(folder: Path) -> None:
        call, left = getattr(place, name), [number]

        def counted(*args: object, **options: object) -> object:
            left[0] -= 1
            return die() if left[0] == 0 else call(*args, **options)

        setattr(place, name, counted)
        work(folder)

    return run


def attempt(run: Callable[[Path], None], folder: Path, patience: float | None = None) -> bool:
    """One try in a forked child, killed after `patience` seconds; whether it ended by itself."""
    gc.collect()
    gc.freeze()  # each training of the child collects, which would look through, and so copy, all that was imported
    child = os.fork()
    if child == 0:
        try:
            run(folder)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    if patience is not None:
        time.sleep(patience)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a try failed otherwise than by being killed")
    return os.WIFEXITED(status)


def main() -> None:
    top = Path(sys.argv[1])
    top.mkdir(exist_ok=True)
    (top / "whole").mkdir()
    assert attempt(work, top / "whole")
    moments, by_clock = random.Random(0), "--clock" in sys.argv
    victims = [
        [at_step(3), at_step(7)],
        [before_call(module, "seal_state", 2)],
        [before_call(module, "save_tensors", 2)],
        [before_call(torch, "save", 4)],  # between the files of a state
    ]
    resumed, kills = [], 0
    for number, runs in enumerate(victims):
        folder = top / str(number)
        folder.mkdir()
        for run in runs:
            kills += not attempt(run, folder)
        if by_clock:  # another moment each time; may end first
            kills += not attempt(work, folder, moments.uniform(0.1, 0.6))
        assert attempt(work, folder)
        resumed.append((folder / "digest").read_text())
    print(json.dumps({"whole": (top / "whole" / "digest").read_text(), "resumed": resumed, "kills": kills}))


if __name__ == "__main__":
    main()
