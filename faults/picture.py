"""What a command left behind, without what clocks say: comparable between a run and its resumption."""

import hashlib
import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

CLOCKS = {"seconds", "train_seconds", "sessions", "stamps", "peak", "peak_bytes", "sha256"}
"""Keys of JSON objects that tell of a run's course, not of its result; a file's own digest covers these, too."""
IDENTITY = frozenset({"given"})
"""Key of run.json that says what was read, by content: it differs with any file of a folder, also one nobody opens."""
COURSE = {".lock", "log.jsonl", "report.html", "league.md", "league.png", "league.svg"}
"""Files that tell of a run's course, too, and of no result that is not in another: a league's page shows its costs."""
LEFTOVERS = (".tmp", ".part", ".partial")

Picture = Mapping[str, str]
"""Path below the outcome -> digest of what the file says, or what is wrong with it, which begins with HALF."""
HALF = "half: "


def picture(outcome: Path, but: Set[str] = frozenset()) -> Picture:
    """Of a file or of all files of a folder, JSON without some keys; empty where there is nothing."""
    if outcome.is_file():
        return {outcome.name: _said_by(outcome, but)}
    files = sorted(path for path in outcome.rglob("*") if path.is_file() and path.name not in COURSE)
    return {str(path.relative_to(outcome)): _said_by(path, but) for path in files}


def differences(expected: Picture, given: Picture) -> list[str]:
    """One text per file that is missing, new or different."""
    words = {(True, False): "is missing", (False, True): "is new", (True, True): "differs"}
    return [
        f"{name} {words[name in expected, name in given]}"
        for name in sorted({*expected, *given})
        if expected.get(name) != given.get(name)
    ]


def half_files(given: Picture) -> list[str]:
    """Files under their final names that cannot be read."""
    return [
        f"{name}: {said.removeprefix(HALF)}"
        for name, said in given.items()
        if said.startswith(HALF) and not any(map(_unfinished, name.split("/")))
    ]


def leftovers(folder: Path) -> list[str]:
    """Files and folders that were being written."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith(LEFTOVERS)]


def _unfinished(part: str) -> bool:
    """A file being written, or a state that transformers writes file by file; that counts when its seal is written."""
    return part.startswith((".", "checkpoint-"))


def _said_by(path: Path, but: Set[str]) -> str:
    try:
        if path.suffix == ".json":
            content = json.dumps(_without(json.loads(path.read_bytes()), CLOCKS | but), sort_keys=True).encode()
        elif path.suffix == ".safetensors":
            content = _tensors(path)
        else:
            content = path.read_bytes()
    except Exception as error:
        return f"{HALF}{error}"
    return hashlib.sha256(content).hexdigest()


def _tensors(path: Path) -> bytes:
    import torch
    from safetensors import safe_open

    said = hashlib.sha256()
    with safe_open(path, framework="pt") as file:
        header = {key: value for key, value in (file.metadata() or {}).items() if key != "sha256"}
        said.update(json.dumps(header, sort_keys=True).encode())
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            said.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            said.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return said.digest()


def _without(value: Any, keys: Set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, keys) for key, item in value.items() if key not in keys}
    if isinstance(value, list):
        return [_without(item, keys) for item in value]
    return value
