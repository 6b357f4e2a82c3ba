"""What was read, known by its content: sha256 of a file, and of every file that a checkpoint or data folder holds.

A name says nothing about content, nor does a time: files are copied, and weights are replaced under their names.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from keylayers.errors import BadInput

MARKS = ("config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json")
"""Names one of which makes a folder a checkpoint."""
TEMPLATES = "additional_chat_templates"
"""The one folder inside a checkpoint that transformers reads."""
NOT_READ = (
    *("*.md", "LICENSE*", "*.log", "*.lock", "*.html", "*.png", "*.svg", "events.out.*"),
    *("trainer_state.json", "training_args.bin", "optimizer.*", "scheduler.*", "rng_state*", "*_results.json"),
)
"""Names in a checkpoint folder that no loader opens: words about it, and what a trainer leaves beside it."""
OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx")
"""Names of weights that no loader opens where there are safetensors."""
SETTLED = 2.0
"""Seconds after a change before a file's times are trusted: clocks of file systems tick in steps."""


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    sha256: str
    stamp: tuple[int, ...] = ()
    """Size, times of the last change of content and of inode in ns, inode number: while they are the same, so is the
    content. Empty where that cannot be relied upon."""


def file_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes, 64 hexadecimal digits, as `sha256sum` prints it."""
    sha = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    except OSError as error:
        raise BadInput(
            f"cannot read {str(path)!r}: {error.strerror}; give a file that exists and is readable"
        ) from error
    return sha.hexdigest()


def json_sha256(value: Any) -> str:
    """sha256 of a JSON value, 64 hexadecimal digits: one per value, whatever the order of keys and the spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def content_of(path: Path, earlier: Content | None = None) -> Content:
    """The file's content: read whole, unless nothing has touched the file since `earlier` was made.

    Raises:
        BadInput: if it cannot be read.
    """
    now = time.time()
    try:
        found = path.stat()
    except OSError as error:
        raise BadInput(f"cannot read {str(path)!r}: {error.strerror}; give a file that is readable") from error
    stamp = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    if earlier is not None and earlier.stamp == stamp:
        return earlier
    settled = abs(now - found.st_ctime) > SETTLED
    return Content(file_sha256(path), stamp if settled else ())


def files_read(source: Path) -> dict[str, Path]:
    """The files that using a source reads, by the name under it: itself where it is a file.

    Of a checkpoint folder those at its top that loaders open; of any other folder all that are not hidden, run folders
    left out. What keylayers wrote there as JSON (scores, pages' figures) is neither a model nor data.

    Raises:
        BadInput: if the folder cannot be listed.
    """
    if os.path.isfile(source):
        return {"": source}
    if not os.path.isdir(source):
        return {}
    try:
        names = sorted(os.listdir(source))
    except OSError as error:
        raise BadInput(f"cannot list {str(source)!r}: {error.strerror}; give a folder that is readable") from error
    top = [source / name for name in names if os.path.isfile(source / name) and not name.startswith(".")]
    if any(fnmatch(path.name, mark) for path in top for mark in MARKS):
        safe = any(path.suffix == ".safetensors" for path in top)
        unread = (*NOT_READ, *(OTHER_WEIGHTS if safe else ()))
        read = [path for path in top if not any(fnmatch(path.name, name) for name in unread)]
        read += [path for path in sorted((source / TEMPLATES).glob("*")) if path.is_file()]
    else:
        read = _below(source)
    return {str(path.relative_to(source)): path for path in read if not _is_ours(path)}


def contents(source: Path, earlier: Mapping[str, Content] | None = None) -> dict[str, Content]:
    """The content of every file that using the source reads, by the name under it."""
    known = earlier or {}
    return {name: content_of(path, known.get(name)) for name, path in files_read(source).items()}


def _below(folder: Path) -> list[Path]:
    """Every file below, links followed once."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen or (Path(place) != folder and "run.json" in names):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return [path for path in found if path.is_file()]


def _is_ours(path: Path) -> bool:
    """Whether keylayers wrote it, as the beginning of its JSON says."""
    if path.suffix != ".json":
        return False
    try:
        with path.open("rb") as file:
            return b'"format": "keylayers/' in file.read(64)
    except OSError:
        return False  # whoever reads it says why it cannot be read
