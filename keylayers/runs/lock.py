"""One process per run folder: a kernel lock, so that nothing stale is ever left behind."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keylayers.errors import BadInput

PATIENCE = 2.0  # seconds

_held: set[int] = set()  # descriptors of the locks that this process holds


def _release_in_child() -> None:
    """A forked worker that outlives its killed parent must not keep the lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; the kernel frees it when the process ends, however it ends."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise BadInput(f"cannot write into {str(folder)!r}: {error.strerror}; give --out another folder") from error
    try:
        _acquire(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _held.add(descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _acquire(descriptor: int, folder: Path) -> None:
    """Takes the lock, or raises BadInput at once if its owner is alive.

    A dead owner can hold it a moment longer: a program that it was starting when it was killed has its descriptors
    until it runs.
    """
    patience = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(descriptor, 40, 0).decode(errors="replace").strip()
            if _is_alive(owner) or time.monotonic() > patience:
                raise BadInput(
                    f"{str(folder)!r} is in use by process {owner or 'unknown'}; wait for it to end or give --out "
                    "another folder"
                ) from error
            time.sleep(0.01)


def _is_alive(owner: str) -> bool:
    if not owner.isdigit():
        return False  # not written yet, or its owner was killed before it could
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
