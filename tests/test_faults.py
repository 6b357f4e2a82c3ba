"""The harness of `make faults` itself, on a run without a model: what it hits is hit, and what is wrong is told.

Run in a process of its own, as it forks and listens to every file operation: python tests/test_faults.py FOLDER
"""

import json
import subprocess
import sys
from pathlib import Path


def work() -> int:
    """A program with a run folder; its status."""
    from keylayers.errors import KeylayersError
    from keylayers.runs import open_run

    try:
        with open_run("out.json", "work", {"steps": 2}) as run:
            first = run.part("first", lambda: {"value": 2})["value"]
            run.part("second", lambda: {"value": first**2})
    except KeylayersError as error:
        print(f"keylayers: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def careless() -> int:
    """A program that writes in place, and does not care how much of it arrives."""
    try:
        with open("out.json", "w") as file:
            file.write('{"value": 1234}')
    except OSError:
        pass
    return 0


def main() -> None:
    """Prints, for every kind that hits, how often each program was found wanting, and in which way."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from faults import child, trial
    from faults.commands import Command
    from faults.kinds import KINDS

    child.preload(heavy=False)
    told: dict[str, dict[str, list[str]]] = {}
    for program in (work, careless):
        child._main = program
        command = Command(program.__name__, "", outcome="out.json", heavy=False)
        folder = Path(sys.argv[1]) / program.__name__
        usual = trial.look(command, folder)
        kinds = [kind for kind in KINDS if kind.draw and "moment" not in kind.name]
        found = [trial.tried(number, 0, command, kind, usual, folder) for number, kind in enumerate(kinds)]
        told[program.__name__] = {one.kind: [text.split(":")[0] for text in one.wrong] for one in found}
    print(json.dumps(told))


def test_a_sound_program_survives_and_a_careless_one_does_not(tmp_path):
    done = subprocess.run([sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["work"]) >= 10 and not any(told["work"].values()), told["work"]
    assert told["careless"]["disk full for good"] == ["silent", "half"]


if __name__ == "__main__":
    main()
