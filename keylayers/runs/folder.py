"""A run folder: settings and provenance, one owner at a time, and every finished part kept for the resume.

run.json         settings, provenance, status, sessions        parts/NAME.json          results, computed once
log.jsonl        events, one per line                          parts/NAME.safetensors   tensors, computed once
checkpoints/     the last two states of each loop              .lock                    held while a process runs
"""

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keylayers.errors import BadInput
from keylayers.files.atomic import remove_leftovers
from keylayers.files.canonical import plain
from keylayers.files.checked import read_json, read_tensors, write_json, write_tensors
from keylayers.files.digests import Content
from keylayers.runs.checkpoint import Checkpoint
from keylayers.runs.clearing import RECORD, clear, is_run, results
from keylayers.runs.given import Given
from keylayers.runs.lock import locked
from keylayers.runs.log import append_event, read_log
from keylayers.runs.progress import note
from keylayers.runs.provenance import git_commit, machine, versions
from keylayers.runs.signals import termination_interrupts

if TYPE_CHECKING:
    import torch

FORMAT = "keylayers/run/1"
GIVEN = "given"
"""Where settings have the digests of what was given."""


@dataclass(frozen=True)
class RunFolder:
    """An open run; made by `open_run`."""

    path: Path
    command: str
    settings: dict[str, Any]
    earlier_status: str | None
    """How the folder was found: `finished`, `failed`, `interrupted`, `running` (killed), or None where it is new."""

    def part(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What `compute` returns, as JSON keeps it: computed and stored once, read back ever after."""
        path = self._place("parts", name, ".json")
        if not path.exists():
            began = time.monotonic()
            value = compute()
            write_json(path, {"value": value, "seconds": round(time.monotonic() - began, 3)})
        return read_json(path, value=dict)["value"]

    def tensor_part(self, name: str, compute: Callable[[], Mapping[str, "torch.Tensor"]]) -> dict[str, "torch.Tensor"]:
        """The tensors `compute` returns, on the CPU: computed and stored once, read back ever after."""
        path = self._place("parts", name, ".safetensors")
        if not path.exists():
            write_tensors(path, compute())
        return read_tensors(path)[0]

    def has_part(self, name: str) -> bool:
        """Whether a part of this name is stored."""
        return any(self._place("parts", name, suffix).exists() for suffix in (".json", ".safetensors"))

    def checkpoint(self, name: str) -> Checkpoint:
        """The place where the loop of this name saves its state."""
        return Checkpoint(self._place("checkpoints", name, ""))

    def log(self, event: str, **values: Any) -> None:
        """Appends an event with its values and the time to the log."""
        append_event(self.path / "log.jsonl", event, values)

    def events(self) -> list[dict[str, Any]]:
        """The logged events of all sessions, in order."""
        return read_log(self.path / "log.jsonl")

    def _place(self, kind: str, name: str, suffix: str) -> Path:
        if not name or name.startswith(".") or len(name) > 200 or set(name) & set("/\\\0\n"):
            raise BadInput(
                f"{kind[:-1]} name {name!r}: expected 1 to 200 characters, no slash, not starting with a dot"
            )
        return self.path / kind / (name + suffix)


@contextmanager
def open_run(
    path: str | Path, command: str, settings: Any, *, given: Given | None = None, fresh: bool = False
) -> Iterator[RunFolder]:
    """Creates the run folder, or resumes it where it holds the same command with the same settings.

    On leaving, run.json says `finished`; on an error `failed`; on Ctrl-C or SIGTERM `interrupted`, and standard error
    says how to resume; each is raised on. A killed process (SIGKILL, power) leaves `running` and is resumed likewise.
    `settings` is a dataclass or a mapping; `given` are the models and data that the run reads, whose contents become
    settings, too. `fresh` deletes what an earlier run wrote into the folder (never what is somebody else's).

    Raises:
        BadInput: other settings or contents than the stored ones (each difference is listed), a folder that another
            process uses, that holds something else, that is damaged, or that cannot be written.
    """
    folder = Path(path)
    record = {"format": FORMAT, "command": command, "settings": plain(settings)}
    _make(folder)
    _refuse_foreign(folder)
    with locked(folder):
        if given is not None:
            record = _with_contents(record, given, folder)
        earlier = _prepare(folder, record, fresh)
        began, sessions = time.monotonic(), (earlier or {}).get("sessions", [])
        session: dict[str, Any] = {
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "argv": sys.argv,
            "versions": versions(),
            "machine": machine(),
            "git": git_commit(),
        }

        def store(status: str, **more: Any) -> None:
            seconds = round(time.monotonic() - began, 3)
            now = session | {"machine": machine(), "seconds": seconds, "status": status} | more
            total = round(seconds + sum(each.get("seconds", 0.0) for each in sessions), 3)
            write_json(folder / "run.json", record | {"status": status, "seconds": total, "sessions": [*sessions, now]})

        store("running")
        run = RunFolder(folder, command, record["settings"], earlier["status"] if earlier else None)
        run.log("started", session=len(sessions) + 1, resumed=earlier is not None)
        try:
            with termination_interrupts():
                yield run
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            _record_end(store, run, status, f"{type(error).__name__}: {error}"[:2000])
            if status == "interrupted":
                kept = f"what is finished is kept in {folder}" if results(folder) else "nothing was finished yet"
                note(f"interrupted; {kept}. To resume: {_same_command()}")
            raise
        store("finished")
        run.log("finished")


def read_run(path: str | Path) -> dict[str, Any]:
    """The record of a run folder (`command`, `settings`, `status`, `seconds`, `sessions`), verified.

    Raises:
        BadInput: if it is missing, damaged, or no record of a run.
    """
    record = Path(path) / "run.json"
    try:
        stored = read_json(record, command=str, settings=dict, status=str, sessions=list)
        if not all(map(_is_session, stored["sessions"])):
            raise BadInput(f"{str(record)!r} lists sessions as no run records them")
        if not _are_contents(stored["settings"].get(GIVEN, {}), stored.get("stamps", {})):
            raise BadInput(f"{str(record)!r} lists what was given as no run records it")
        return stored
    except BadInput as error:
        if not is_run(Path(path)):
            raise
        raise BadInput(f"{str(record)!r} is damaged, so what the run was asked is not known") from error


def _are_contents(digests: Any, stamps: Any) -> bool:
    """Whether these are sha256 by name, and stamps by name."""
    return (
        isinstance(digests, dict)
        and isinstance(stamps, dict)
        and all(isinstance(sha, str) for sha in digests.values())
        and all(isinstance(stamp, list) and all(isinstance(part, int) for part in stamp) for stamp in stamps.values())
    )


def _is_session(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("versions", {}), dict)
        and isinstance(value.get("seconds", 0), int | float)
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise BadInput(f"{str(folder)!r} is a file; expected a run folder", "give another `out`") from error
    except OSError as error:
        raise BadInput(f"cannot make the folder {str(folder)!r}: {error.strerror}", "give another `out`") from error


def _refuse_foreign(folder: Path) -> None:
    """A folder with files but no run.json of ours is someone's; nothing in it is touched, whatever `fresh` says."""
    names = sorted(entry.name for entry in folder.iterdir())
    foreign = [name for name in names if name not in RECORD and not name.startswith((".run.json.", ".lock."))]
    if "run.json" in names and not is_run(folder):
        raise BadInput(
            f"{str(folder)!r} holds a run.json that keylayers did not write, so it is no run folder; expected one, or "
            "an empty or new folder",
            "give another `out`",
        )
    if foreign and "run.json" not in names:
        raise BadInput(
            f"{str(folder)!r} holds {', '.join(foreign[:3])}{' ...' if len(foreign) > 3 else ''} but no run.json; "
            "expected a run folder or an empty or new one",
            "give another `out`",
        )


def _with_contents(record: dict[str, Any], given: Given, folder: Path) -> dict[str, Any]:
    """The record with the contents of what was given; files that nothing touched since the last session are not read
    again."""
    try:
        earlier = read_run(folder) if is_run(folder) else {}
    except BadInput:
        earlier = {}  # damaged: whether that matters is asked later
    known, stamps = (earlier.get("settings") or {}).get(GIVEN) or {}, earlier.get("stamps") or {}
    found = given.contents({name: Content(sha, tuple(stamps.get(name, ()))) for name, sha in known.items()})
    digests = {name: content.sha256 or known.get(name, "") for name, content in found.items()}  # offline: as it was
    settings = record["settings"] | {GIVEN: digests}
    return record | {"settings": settings, "stamps": {name: list(content.stamp) for name, content in found.items()}}


def _prepare(folder: Path, record: dict[str, Any], fresh: bool) -> dict[str, Any] | None:
    """Makes the folder ready; the earlier record where there is one to resume."""
    remove_leftovers(folder)
    if not (folder / "run.json").exists():
        return None
    try:
        earlier = None if fresh else read_run(folder)
    except BadInput as error:
        raise BadInput(str(error), "give another `out`", "delete that run with `fresh`") from error
    if earlier is None or earlier["status"] == "clearing":
        _clear(folder, record)
        return None
    now = record
    if GIVEN in record["settings"] and GIVEN not in (earlier.get("settings") or {}):
        note(f"the run in {folder} began before contents were recorded; what it was given is taken to be unchanged")
        now = record | {"settings": {key: value for key, value in record["settings"].items() if key != GIVEN}}
    if differences := list(_differences(_comparable(earlier), _comparable(now))):
        if earlier["status"] != "finished" and not results(folder):
            _clear(folder, record)  # after a mistyped name, say: nothing is lost, and nothing to be resumed
            return None
        if earlier.get("command") != record["command"]:
            raise BadInput(
                f"{str(folder)!r} holds a run of {earlier.get('command')!r}, this is {record['command']!r}",
                "give another `out`",
                "delete that run with `fresh`",
            )
        raise BadInput(
            f"{str(folder)!r} holds a run with other settings:\n  "
            + "\n  ".join(differences)
            + "\nNothing was changed",
            "give another `out`",
            "delete that run with `fresh`",
            "give what is stored to resume it",
        )
    stored, given = earlier["sessions"][-1].get("versions", {}) if earlier["sessions"] else {}, versions()
    if stored and (changed := list(_differences(stored, given))):
        note("resuming with other package versions than before: " + "; ".join(changed))
    return earlier


def _clear(folder: Path, record: dict[str, Any]) -> None:
    """Empties a run folder of its run; killed half-way, the next opening goes on emptying it."""
    write_json(folder / "run.json", record | {"status": "clearing", "sessions": []})
    if kept := clear(folder):
        note(f"kept in {folder}, since no run wrote it: {', '.join(kept[:5])}{' ...' if len(kept) > 5 else ''}")


def _comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(record.get("settings") or {})
    contents = {f"{GIVEN}: {name}": sha for name, sha in (settings.pop(GIVEN, None) or {}).items()}
    return {"format": record.get("format"), "command": record.get("command"), **_flat(settings), **contents}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return found


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted({*stored, *given}):
        if key.startswith(f"{GIVEN}: "):
            yield from _other_content(key[len(GIVEN) + 2 :], stored.get(key), given.get(key))
        elif key not in stored:
            yield f"{key}: not stored, given {given[key]!r}"
        elif key not in given:
            yield f"{key}: stored {stored[key]!r}, not given"
        elif stored[key] != given[key]:
            yield f"{key}: stored {stored[key]!r}, given {given[key]!r}"


def _other_content(name: str, stored: str | None, now: str | None) -> Iterator[str]:
    """What is to be said of a file or hub id; an empty digest is a commit that could not be told, offline say."""
    if stored is None:
        yield f"{name}: was not there when the run began"
    elif now is None:
        yield f"{name}: is no longer there"
    elif stored != now and stored and now:
        yield f"{name}: its content is not what it was when the run began"


def _record_end(store: Callable[..., None], run: RunFolder, status: str, error: str) -> None:
    """Records how a run ended; where even that cannot be written (a full disk), the first error is the one to raise."""
    try:
        store(status, error=error)
        run.log(status, error=error)
    except BadInput as second:
        note(f"that the run was {status} could not be recorded: {second}")


def _same_command() -> str:
    program = Path(sys.argv[0])
    if program.name == "keylayers" or program.parts[-2:] == ("keylayers", "__main__.py"):
        return shlex.join(["keylayers", *(word for word in sys.argv[1:] if word != "--fresh")])  # it would start over
    return "run the same command again"
