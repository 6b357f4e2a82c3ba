"""Files and folders that are whole or absent: written beside their place, synced and renamed into it.

What a killed process leaves beside the place is deleted by the next one that writes there. A file being written is
locked by its writer, so that nobody takes it for such a leftover; a folder is written by one process at a time.
"""

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from keylayers.errors import BadInput, KeylayersError
from keylayers.files.foreign import reason

TEMPORARY = ".tmp"
"""Suffix of what is being written: `.NAME.8 HEXADECIMAL DIGITS.tmp` beside NAME."""
FULL = ("the disk is full", "free some space and run the same command again", "give another `out`")
ROOM = 1 << 20
"""Free bytes below which a disk is taken for full, where a library's error does not say why it could not write."""
PATIENCE = 24 * 3600
"""Seconds after which a file being written is a leftover where the file system has no locks to tell by."""

_OURS = re.compile(r"\..+\.[0-9a-f]{8}" + re.escape(TEMPORARY))
_swept: set[Path] = set()  # folders without leftovers, as this process keeps them to itself


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives an empty file beside `path` to be written; then it is synced and takes its place. An error leaves the old.

    Raises:
        BadInput: if it cannot be written, whatever library was writing it.
    """
    temporary, descriptor = _beside(path), None
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not any(parent in _swept for parent in path.absolute().parents):
                _remove_dead(path)
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            _lock(descriptor)
            yield temporary
            os.fsync(descriptor)
            os.replace(temporary, path)
            sync(path.parent)  # the rename itself
    finally:
        if descriptor is not None:
            os.close(descriptor)
        with suppress(OSError):  # renamed already, or never made
            temporary.unlink()


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path` to be filled; then all in it is synced and it takes the place of the old.

    For places that one process writes at a time: what an earlier one left beside is deleted first.

    Raises:
        BadInput: if it cannot be written, whatever library was writing it.
    """
    temporary, aside = _beside(path), _beside(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in _leftovers(path):
                remove(left)
            temporary.mkdir()
            yield temporary
            for place, _, names in os.walk(temporary, topdown=False):
                for name in names:
                    sync(Path(place, name))
                sync(Path(place))
            if path.exists() or path.is_symlink():
                os.rename(path, aside)
            os.rename(temporary, path)
            sync(path.parent)
    finally:
        for left in (temporary, aside):
            with suppress(OSError):
                remove(left)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises BadInput, which says why `path` cannot be written, for whatever libraries raise while they write it."""
    try:
        yield
    except KeylayersError:
        raise
    except Exception as error:
        if not _is_of_writing(error):
            raise
        why, *remedies = _why(error, path)
        raise BadInput(f"cannot write {str(path)!r}: {why}", *remedies) from error


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder where the system keeps temporary files, until the block ends.

    Raises:
        BadInput: if it cannot be made or written into.
    """
    remedies = ("free some space there", "set TMPDIR to a folder on another disk")
    try:
        made = TemporaryDirectory(ignore_cleanup_errors=True)
    except OSError as error:
        raise BadInput(f"cannot make a temporary folder ({reason(error)})", *remedies) from error
    with made as place:
        try:
            yield Path(place)
        except OSError as error:
            if not str(error.filename or "").startswith(place):
                raise
            raise BadInput(f"cannot write a temporary file into {place} ({reason(error)})", *remedies) from error


def make_folder(path: Path) -> None:
    """Makes the folder and those around it, where they are not there. Raises BadInput, saying why, if it cannot."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def remove_leftovers(folder: Path) -> int:
    """Deletes what killed processes left half-written below a folder that this process has to itself; their number."""
    found = []
    for place, folders, names in os.walk(folder):
        left = [name for name in folders if _OURS.fullmatch(name)]
        folders[:] = [name for name in folders if name not in left]
        found += [Path(place, name) for name in (*left, *(name for name in names if _OURS.fullmatch(name)))]
    for path in found:
        with suppress(FileNotFoundError):
            remove(path)
    _swept.add(folder.absolute())
    return len(found)


def remove(path: Path) -> None:
    """Deletes a file, a link or a folder with all in it, whichever is there; never what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Has the system put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some file systems do not sync folders
            raise
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f"{_begin(path)}{secrets.token_hex(4)}{TEMPORARY}")


def _begin(path: Path) -> str:
    """How names beside it begin; a file system takes 255 bytes."""
    return f".{os.fsencode(path.name)[:200].decode(errors='ignore')}."


def _leftovers(path: Path) -> list[Path]:
    own = re.compile(re.escape(_begin(path)) + r"[0-9a-f]{8}" + re.escape(TEMPORARY))
    with os.scandir(path.parent) as entries:
        return [Path(entry.path) for entry in entries if own.fullmatch(entry.name)]


def _remove_dead(path: Path) -> None:
    """Deletes files half-written for this place whose writers are gone: nobody holds their lock."""
    for left in _leftovers(path):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDWR)
            try:
                locked = _lock(descriptor)
                if locked or (locked is None and time.time() - left.stat().st_mtime > PATIENCE):
                    left.unlink()
            finally:
                os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the file is locked by this process now; None where the file system has no locks."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_of_writing(error: Exception) -> bool:
    """torch's streams raise RuntimeErrors that do not say what the system said; safetensors has a class of its own."""
    streams = ("stream", "file write", "inline_container", "PytorchStreamWriter", "No space left")
    return (
        isinstance(error, OSError)
        or type(error).__name__ == "SafetensorError"
        or (isinstance(error, RuntimeError) and any(word in str(error) for word in streams))
    )


def _why(error: Exception, path: Path) -> tuple[str, ...]:
    """The reason, and what to do."""
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or (number is None and _is_full(path)):
        return FULL
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
        return "a file is in the place of a folder, or a folder in the place of the file", "give another `out`"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "the folder is not writable", "change its permissions", "give another `out`"
    return reason(error), "give another `out`"


def _is_full(path: Path) -> bool:
    nearest = next((place for place in path.absolute().parents if place.exists()), None)
    return nearest is not None and shutil.disk_usage(nearest).free < ROOM
