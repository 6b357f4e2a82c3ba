"""What a result was made from: canonical digests, package versions, the machine."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from keylayers.errors import BadInput
from keylayers.files.digests import json_sha256

PACKAGES = (
    "keylayers",
    "torch",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
    "numpy",
    "scipy",
    "safetensors",
)


def plain(value: Any) -> Any:
    """The value as JSON keeps it: dataclasses and mappings as dicts, tuples and arrays as lists, paths as strings.

    Raises:
        BadInput: for a number that is not finite, or a value that JSON cannot hold; the place is named (`a.b[3]`).
    """
    return _plain(value, "")


def canonical_json(value: Any) -> str:
    """One text per value, whatever the order of its keys: sorted, no spaces, ASCII; floats by their shortest repr."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON, 64 hexadecimal digits."""
    return json_sha256(plain(value))


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that decide a result; nothing is imported for it."""
    return dict(_versions())


def machine() -> dict[str, Any]:
    """Platform, processor count and, once torch has been imported by someone, its device and thread count."""
    found: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    if torch := sys.modules.get("torch"):
        cuda = torch.cuda.is_available()
        found |= {"device": torch.cuda.get_device_name() if cuda else "cpu", "threads": torch.get_num_threads()}
    return found


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Commit of the checkout that this package runs from, with `+changes` where files differ; None outside one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None  # no git on this machine, or no commit yet


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()


def _plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if value - value != 0:  # inf and nan alone differ from themselves
            raise BadInput(
                f"{place or 'value'} is {value}: only finite numbers are stored; give null where there is none"
            )
        return float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name), f"{place}.{field.name}".lstrip("."))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{place}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return [_plain(item, place) for item in sorted(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch scalars and arrays
        return _plain(value.tolist(), place)
    raise BadInput(f"{place or 'value'} is a {type(value).__name__}: JSON holds numbers, texts, lists and mappings")
