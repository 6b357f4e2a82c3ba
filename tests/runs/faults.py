"""A loop that is killed at every system call in turn, or at random moments, and resumed until it ends.

Run in a process of its own (it forks, and a test worker has threads):
    python tests/runs/faults.py FOLDER crash-points      python tests/runs/faults.py FOLDER random SEED
Prints one JSON object: the result of the loop, how often it was killed, whether every file was whole after each kill.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from keylayers.runs import git_commit, open_run, read_json, read_tensors, versions

torch.set_num_threads(1)
STEPS = 2
KILLS = 15
CALLS = ("open", "fsync", "replace", "unlink")


def work(folder: Path) -> None:
    """Dependent steps, each saved, then a part: a resumed run must end with an uninterrupted one's numbers."""
    with open_run(folder, "work", {"steps": STEPS}) as run:
        states = run.checkpoint("loop")
        done, state = 0, torch.ones(3, dtype=torch.float64)
        if found := states.load():
            done, state = found[0], found[1]["state"]
        for step in range(done + 1, STEPS + 1):
            state = torch.sin(state * 1.7 + step)
            run.log("step", step=step)
            states.save(step, {"state": state}, {"loss": float(state.sum())})
        run.part("result", lambda: {"state": state.tolist()})


def die_at_call(number: int) -> None:
    """Has this process kill itself before its `number`-th call that changes the file system."""
    left = [number]

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def attempt(folder: Path, before: Callable[[], None], patience: float | None) -> bool:
    """One try in a forked child, killed after `patience` seconds; whether it ended by itself."""
    child = os.fork()
    if child == 0:
        try:
            before()
            work(folder)
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


def check_whole(folder: Path) -> None:
    """Reads every published file; a half-written one raises."""
    for path in folder.rglob("*.json"):
        read_json(path)
    for path in folder.rglob("*.safetensors"):
        if not path.name.startswith("."):
            read_tensors(path)


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    git_commit(), versions()  # cached before forking
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote; only a power cut would
    kills = 0
    if mode == "crash-points":
        # a new folder per point: the run dies at its k-th call, is resumed once, and must end
        results = []
        for point in range(1, 10_000):
            run = folder / str(point)
            if attempt(run, lambda point=point: die_at_call(point), None):
                break
            kills += 1
            check_whole(run)
            assert attempt(run, lambda: None, None)
            check_whole(run)
            results.append(read_json(run / "parts" / "result.json")["value"]["state"])
            assert not list(run.rglob(".*.tmp"))
        assert all(result == results[0] for result in results)
        result = results[0]
    else:
        delays = random.Random(int(sys.argv[3]))
        for run in (folder / str(number) for number in range(1000)):
            while not attempt(run, lambda: None, delays.uniform(0.001, 0.02) if kills < KILLS else None):
                kills += 1
                check_whole(run)
            result = read_json(run / "parts" / "result.json")["value"]["state"]
            if kills == KILLS:
                break
    print(json.dumps({"state": result, "kills": kills}))


if __name__ == "__main__":
    main()
