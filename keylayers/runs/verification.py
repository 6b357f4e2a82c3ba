"""Reading everything that was stored, to see whether it still is what was written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from keylayers.errors import BadInput, KeylayersError
from keylayers.files.checked import read_json, read_tensors
from keylayers.runs.clearing import RECORD, SEALED, is_run
from keylayers.runs.folder import read_run
from keylayers.runs.log import damaged_lines
from keylayers.runs.seals import SEAL, damage, is_sealed, sealed_files


@dataclass(frozen=True)
class Verified:
    """What reading a folder, or a file, showed."""

    whole: tuple[Path, ...]
    """Files that are what was written, by a sha256 inside them or in a seal beside them."""
    damaged: tuple[tuple[Path, str], ...]
    """Files that are not, or are missing, each with what is wrong."""
    unsealed: tuple[Path, ...]
    """Files that carry no sha256: pages, pictures, scores of an earlier version, what somebody else put there."""


def verify(path: str | Path) -> Verified:
    """Reads every file of a run folder, a sealed folder or a folder of such, or one file, and compares digests.

    Memory: the largest file.

    Raises:
        BadInput: if nothing is there.
    """
    place = Path(path)
    if not place.exists():
        raise BadInput(f"nothing is at {str(place)!r}; give a run folder, a tuned model of one, or a score file")
    found: dict[Path, str | None] = {}
    seals = [up for up in (place, place.parent) if is_sealed(up)] if place.is_file() else []
    seals += [seal.parent for seal in sorted(place.rglob(SEAL))] if place.is_dir() else []
    for folder in seals:
        wrong = damage(folder)
        names = [SEAL, *(sealed_files(folder) if SEAL not in wrong else ())]
        found |= {folder / name: wrong.get(name) for name in names}
    if place.is_file():
        found = {name: what for name, what in found.items() if name == place}
    unsealed = []
    for file in [place] if place.is_file() else sorted(_files(place)):
        if file in found:
            continue
        try:
            sealed = _read(file)
        except KeylayersError as error:
            found[file] = str(error)
            continue
        if sealed:
            found[file] = None
        else:
            unsealed.append(file)
    return Verified(
        tuple(file for file, what in found.items() if what is None),
        tuple((file, what) for file, what in found.items() if what is not None),
        tuple(unsealed),
    )


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and (path.name not in RECORD or path.suffix in (".json", ".jsonl")):
            yield path


def _read(file: Path) -> bool:
    """Whether the file carries a digest, which fits. Raises KeylayersError, saying what is wrong, if it is damaged."""
    if file.name == "log.jsonl":
        if lines := damaged_lines(file):
            raise BadInput(f"{str(file)!r}: damaged lines: {', '.join(map(str, lines[:5]))}; they are left out")
        return True
    if file.name == "run.json" and is_run(file.parent):
        read_run(file.parent)
        return True
    if _always_carries(file):
        read_json(file) if file.suffix == ".json" else read_tensors(file)
        return True
    if file.suffix == ".safetensors":
        return _read_tensors(file)
    if file.suffix != ".json":
        return False
    try:
        stated = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        stated = None
    if stated is not None and not (isinstance(stated, dict) and "sha256" in stated):
        if isinstance(stated, dict) and str(stated.get("format", "")).startswith("keylayers/scores/"):
            _load_scores(file)
        return False
    read_json(file)
    if stated and str(stated.get("format", "")).startswith("keylayers/scores/"):
        _load_scores(file)
    return True


def _always_carries(file: Path) -> bool:
    """Whether it is a file of a run that is never written without its digest, so that none means damage."""
    run = next((up for up in file.parents if is_run(up)), None)
    if run is None:
        return False
    return any(fnmatch(file.relative_to(run).as_posix(), sealed) for sealed in SEALED)


def _load_scores(file: Path) -> None:
    from keylayers.scores.files import load

    load(file)


def _read_tensors(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            carries = "sha256" in (opened.metadata() or {})
            if not carries:
                return False
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{str(file)!r} is not a whole safetensors file ({error})") from error
    read_tensors(file)
    return True
