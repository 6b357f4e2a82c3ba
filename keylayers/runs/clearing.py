"""What a run writes into its folder, and emptying the folder of that alone: what somebody else put there stays."""

import json
import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from keylayers.errors import BadInput
from keylayers.files.atomic import remove
from keylayers.runs.seals import SEAL, is_sealed, sealed_files

FORMAT = "keylayers/run/"
RECORD = ("run.json", "log.jsonl", ".lock", ".lock.owner")
"""What every run has, whatever came of it."""
SEALED = (
    *("parts/*.json", "parts/*.safetensors", "checkpoints/*.safetensors"),
    *("models/*.safetensors", "variants/*.safetensors", "screen.safetensors"),
    *("comparison.json", "share.json", "flags.json", "league.json", "results.json"),
    *("cleansed.safetensors", "cleansed.json", "last.safetensors", "last.json", "best.safetensors", "best.json"),
)
"""Results of the commands that always carry their sha256; `*` stands for any characters, `/` too."""
WRITTEN = (
    *SEALED,
    *("stage1/*", "arms/*", "tuned/*", "starts/*"),  # filled by other libraries
    *("scores.json", "scores/*.json", "looks/step-*.json"),
    *("report.html", "report/*.svg", "report/*.png", "results.md", "league.*", "gain.*"),
)
"""All results."""


def is_run(folder: Path) -> bool:
    """Whether the folder's run.json is keylayers' own, as its format says; others use that name, too.

    A damaged one of ours still is.
    """
    try:
        with (folder / "run.json").open("rb") as file:
            return f'"format": "{FORMAT}'.encode() in file.read(256)
    except OSError:
        return False


def results(folder: Path) -> list[Path]:
    """The files, and links, in the folder that runs write as results."""
    return [path for path in _files(folder) if _is_written(path, folder)]


def clear(folder: Path) -> list[str]:
    """Deletes a run's results and log; the names at the top of the folder that are left, for they are not a run's.

    Links are deleted, not what they lead to.

    Raises:
        BadInput: if something cannot be deleted.
    """
    tops = {entry.partition("/")[0] for entry in WRITTEN if "/" in entry}
    try:
        for path in sorted([*results(folder), folder / "log.jsonl"], key=lambda path: path.name == SEAL):  # seals last
            remove(path)
        for top in (folder / name for name in sorted(tops)):
            if top.is_symlink():
                top.unlink()
            for place, _, _ in os.walk(top, topdown=False):
                if not any(os.scandir(place)):
                    os.rmdir(place)
    except OSError as error:
        raise BadInput(f"cannot empty {str(folder)!r}: {error.strerror}", "give another `out`") from error
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in RECORD)


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        for name in [*names, *(name for name in folders if os.path.islink(os.path.join(place, name)))]:
            yield Path(place, name)


def _is_written(path: Path, folder: Path) -> bool:
    name = path.relative_to(folder).as_posix()
    if not any(fnmatch(name, written) for written in WRITTEN):
        return "/" not in name and path.suffix == ".json" and (path.stem in _criteria(folder) or _is_score_file(path))
    sealed = next((up for up in path.parents if up != folder and folder in up.parents and is_sealed(up)), None)
    if sealed is None:
        return True
    try:
        return path.name == SEAL or str(path.relative_to(sealed)) in sealed_files(sealed)
    except BadInput:
        return True  # the seal is damaged: what lies there is what a run wrote into a folder of its own


def _criteria(folder: Path) -> list[str]:
    """Criteria whose scores the run was asked for: files of their names are its own, damaged ones, too."""
    try:
        return [str(name) for name in json.loads((folder / "run.json").read_bytes())["settings"]["criteria"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def _is_score_file(path: Path) -> bool:
    """A criterion's scores, which are called as it is; a copy under another name is somebody's."""
    try:
        stated = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return (
        isinstance(stated, dict)
        and str(stated.get("format", "")).startswith("keylayers/scores/")
        and stated.get("criterion") == path.stem
    )
