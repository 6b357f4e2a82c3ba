"""`python -m faults`: tries faults for some seconds, prints and stores what was survived; status 1 if any was not."""

import argparse
import json
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

from faults.child import preload, run
from faults.commands import Command, chosen
from faults.inputs import make_inputs
from faults.kinds import KINDS, Kind
from faults.page import page
from faults.trial import Usual, Verdict, look, tried


def main() -> int:
    """Exit status: 0 if everything was survived."""
    options = _options()
    commands = chosen(options.command)
    kinds = [kind for kind in KINDS if not options.kind or any(part in kind.name for part in options.kind)]
    preload(any(command.heavy for command in commands))
    place = (options.work or Path(tempfile.mkdtemp(prefix="faults-"))).absolute()
    try:
        make_inputs(place / "inputs", any(command.heavy for command in commands))
        run(["compare", "first.json", "second.json", "--out", "run"], place / "inputs")  # what `report` reports on
        usual = {command.name: _look(command, place) for command in commands}
        verdicts = []
        for verdict in _verdicts(options, commands, kinds, usual, place):
            verdicts.append(verdict)
            _tell(verdict)
            if options.log:
                with options.log.open("a") as log:
                    log.write(json.dumps(asdict(verdict)) + "\n")
    finally:
        if options.work is None:  # not a TemporaryDirectory, which every fork would delete at its end
            shutil.rmtree(place)
    restless = [f"{name}: {file}" for name, each in usual.items() for file in each.restless]
    text = page(verdicts, _asked(), date.today().isoformat(), restless)
    if options.page:
        options.page.write_text(text)
    print(text)
    return int(any(verdict.wrong for verdict in verdicts))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="After which no further fault is tried.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=10**9, help="At most so many.")
    parser.add_argument("--first", type=int, default=0, help="Number of the first trial, to repeat it.")
    parser.add_argument("--command", action="append", default=[], help="Only this command; may be repeated.")
    parser.add_argument("--kind", action="append", default=[], help="Only kinds with this in their name.")
    parser.add_argument("--page", type=Path, help="Markdown file for the counts.")
    parser.add_argument("--log", type=Path, help="JSON lines, one per fault.")
    parser.add_argument("--work", type=Path, help="Folder to work in, which is kept; default: a temporary one.")
    return parser.parse_args()


def _asked() -> str:
    return shlex.join(["python", "-m", "faults", *sys.argv[1:]])


def _look(command: Command, place: Path) -> Usual:
    usual = look(command, _folder(command, place))
    print(f"{command.name}: {usual.ended.seconds:.1f} s, {usual.ended.operations} file operations", flush=True)
    return usual


def _verdicts(
    options: argparse.Namespace,
    commands: Sequence[Command],
    kinds: Sequence[Kind],
    usual: dict[str, Usual],
    place: Path,
) -> Iterator[Verdict]:
    """Every command meets every kind in turn; which fault of the kind, the seed decides."""
    until = time.monotonic() + options.seconds
    for number in range(options.first, options.first + options.trials):
        if time.monotonic() > until:
            return
        turn, place_in_turn = divmod(number, len(commands))
        command, kind = commands[place_in_turn], kinds[(turn + place_in_turn) % len(kinds)]
        yield tried(number, options.seed, command, kind, usual[command.name], _folder(command, place))


def _folder(command: Command, place: Path) -> Path:
    return place / command.name.replace(", ", "-")


def _tell(verdict: Verdict) -> None:
    state = "survived" if not verdict.wrong else "NOT SURVIVED"
    what = f"{verdict.number}: {verdict.command}, {verdict.kind} ({verdict.detail}): {state}"
    print(what, *verdict.wrong, sep="\n  ", flush=True)


if __name__ == "__main__":
    sys.exit(main())
