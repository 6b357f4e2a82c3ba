"""One process per run folder: a kernel lock, so that nothing stale is left behind; a file where there are no locks."""

import errno
import fcntl
import json
import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keylayers.errors import BadInput

PATIENCE = 2.0  # seconds
WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""How file systems say that they know no locks (Lustre, FUSE, some NFS)."""

_held: set[int] = set()  # descriptors of the locks that this process holds


def _release_in_child() -> None:
    """A forked worker that outlives its killed parent must not keep the lock."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; the kernel frees it when the process ends, however it ends.

    On a file system without locks, a file names the owner; that of a process that is gone from this machine is
    replaced.

    Raises:
        BadInput: if another process holds it, or the folder cannot be written.
    """
    with _holding(folder / ".lock", folder):
        yield


@contextmanager
def locked_beside(path: Path) -> Iterator[None]:
    """Holds a lock on a place where nothing is yet; its file lies beside and is deleted at the end.

    Raises:
        BadInput: if another process holds it, or the folder around cannot be written.
    """
    lock = path.with_name(f".{os.fsencode(path.name)[:200].decode(errors='ignore')}.lock")
    with _holding(lock, path):
        try:
            yield
        finally:
            with suppress(OSError):  # while it is held, so that no other's is deleted
                lock.unlink()


@contextmanager
def _holding(lock: Path, what: Path) -> Iterator[None]:
    patience = time.monotonic() + PATIENCE
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise BadInput(f"cannot write into {str(what)!r}: {error.strerror}", "give another `out`") from error
        try:
            kernel = _acquire(descriptor, what, patience)
            if not _is_at(descriptor, lock):
                continue  # its owner deleted it in the meantime
            if kernel:
                with suppress(OSError):  # a full disk: then nobody is named
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                _held.add(descriptor)
                yield
            else:
                with _named_owner(lock.with_name(f"{lock.name}.owner"), what):
                    yield
            return
        finally:
            _held.discard(descriptor)
            os.close(descriptor)


def _acquire(descriptor: int, what: Path, patience: float) -> bool:
    """Takes the lock, or raises BadInput at once if its owner is alive; False where the file system has no locks.

    A dead owner can hold it a moment longer: a program that it was starting when it was killed has its descriptors
    until it runs.
    """
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError as error:
            owner = os.pread(descriptor, 40, 0).decode(errors="replace").strip()
            if _is_alive(owner) or time.monotonic() > patience:
                raise BadInput(
                    f"{str(what)!r} is in use by process {owner or 'unknown'}",
                    "wait for it to end",
                    "give another `out`",
                ) from error
            time.sleep(0.01)
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                return False
            raise BadInput(f"cannot lock {str(what)!r}: {error.strerror}", "give another `out`") from error


@contextmanager
def _named_owner(marker: Path, what: Path) -> Iterator[None]:
    """A lock by a file that only one process can create; what a dead process of this machine left is replaced."""
    own = json.dumps({"process": os.getpid(), "machine": platform.node(), "token": secrets.token_hex(8)})
    try:
        while not _create(marker, own):
            _replace_dead(marker, what)
    except OSError as error:
        raise BadInput(f"cannot write into {str(what)!r}: {error.strerror}", "give another `out`") from error
    try:
        yield
    finally:
        with suppress(OSError):
            if marker.read_text() == own:
                marker.unlink()


def _create(marker: Path, text: str) -> bool:
    """Makes the file with its text at once, by a link, so that nobody reads half of it; False if there is one."""
    whole = marker.with_name(f"{marker.name}.{secrets.token_hex(4)}.tmp")
    try:
        whole.write_text(text)
        os.link(whole, marker)
    except FileExistsError:
        return False
    except OSError as error:  # no links there, either
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        try:
            with marker.open("x") as file:
                file.write(text)
        except FileExistsError:
            return False
    finally:
        with suppress(OSError):
            whole.unlink()
    return True


def _replace_dead(marker: Path, what: Path) -> None:
    """Deletes the file of a process that is gone. Raises BadInput if it lives, or is of another machine."""
    try:
        text = marker.read_text()
    except FileNotFoundError:
        return
    owner = _parsed(text)
    here = owner.get("machine") == platform.node()
    if not here or _is_alive(str(owner.get("process"))):
        raise BadInput(
            f"{str(what)!r} is in use by process {owner.get('process', 'unknown')} of machine "
            f"{owner.get('machine', 'unknown')}, as far as a file system without locks can tell",
            "wait for it to end",
            "give another `out`",
            f"delete {str(marker)!r} if that process is gone",
        )
    aside = marker.with_name(f"{marker.name}.{secrets.token_hex(4)}.tmp")
    with suppress(FileNotFoundError):
        os.rename(marker, aside)
        if aside.read_text() != text:  # another process replaced it first, and holds it now
            with suppress(OSError):
                os.link(aside, marker)
        aside.unlink()


def _parsed(text: str) -> dict[str, object]:
    try:
        owner = json.loads(text)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that lies there."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _is_alive(owner: str) -> bool:
    if not owner.isdigit():
        return False  # not written yet, or its owner was killed before it could
    try:
        os.kill(int(owner), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    except OverflowError:
        return False
    return True
