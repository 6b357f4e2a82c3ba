"""File operations, counted, and the one at which a disk is full, a sector bad, memory short or the process killed.

Python tells of every opening, renaming and deleting, whoever asks for it (audit events). What goes into a file that
Python opened, and what safetensors and torch read and write by themselves, is told by wrappers around them, which must
be in place before other libraries import what they wrap. Only paths below one folder count: a run's own files.
"""

import builtins
import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

READ, MAKE, WRITE, MOVE, DELETE = "read", "make", "write", "move", "delete"
WHEN = {
    "kill": (READ, MAKE, WRITE, MOVE, DELETE),
    "interrupt": (READ, MAKE, WRITE, MOVE, DELETE),
    "full once": (MAKE, WRITE),
    "full": (MAKE, WRITE),
    "unreadable": (READ, MAKE, WRITE, MOVE, DELETE),
    "memory": (READ, MAKE, WRITE),
    "torch's memory": (READ, MAKE, WRITE),
}
"""What can happen, and at which operations: a disk that is full can still be read, and what is on it deleted."""

EVENTS = {"os.rename": MOVE, "os.remove": DELETE, "os.rmdir": DELETE, "os.mkdir": MAKE}
BYTES_WANTED = 1 << 40


@dataclass
class Watch:
    """What is counted, and what happens at the `number`-th operation or the first after it where it can."""

    root: str
    number: int
    action: str
    seen: int = 0
    over: bool = False


_watch: Watch | None = None


def arm(root: str, number: int = 0, action: str = "") -> Watch:
    """Counts from now on, in this process; without an action nothing happens."""
    global _watch
    _watch = Watch(os.path.realpath(root) + os.sep, number, action)
    return _watch


def install(torch_too: bool) -> None:
    """Puts audit hook and wrappers in place, once and for good; nothing is counted before `arm`."""
    sys.addaudithook(_hook)
    builtins.open = io.open = _opening(io.open)  # type: ignore[assignment]
    os.fsync = _syncing(os.fsync)
    if torch_too:
        import safetensors.torch
        import torch

        opened = _reading(safetensors.safe_open)
        safetensors.safe_open = safetensors.torch.safe_open = opened  # type: ignore[assignment,misc]
        safetensors.torch.save_file = _saving(safetensors.torch.save_file, 1, _in_rust)
        torch.save = _saving(torch.save, 1, _in_cpp)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writing = bool(flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else "r" not in (mode or "r")
        if isinstance(path, str | bytes):
            _meet(MAKE if writing else READ, path)
    elif event in EVENTS:
        _meet(EVENTS[event], arguments[0])


def _meet(kind: str, path: Any, error: Callable[[str, OSError], BaseException] = lambda said, error: error) -> None:
    """Counts one operation, and does here what is to happen here."""
    if action := _due(kind, path):
        _happen(action, path, error)


def _due(kind: str, path: Any) -> str | None:
    watch = _watch
    if watch is None or not os.path.realpath(os.fsdecode(path)).startswith(watch.root):
        return None
    watch.seen += 1
    if not watch.action or watch.seen < watch.number or kind not in WHEN[watch.action] or watch.over:
        return None
    watch.over = watch.action != "full"
    return watch.action


def _happen(action: str, path: Any, error: Callable[[str, OSError], BaseException]) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    elif action == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    elif action == "memory":
        raise MemoryError
    elif action == "torch's memory":
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            f"allocate {BYTES_WANTED} bytes. Error code 12 (Cannot allocate memory)"
        )
    else:
        number = errno.EIO if action == "unreadable" else errno.ENOSPC
        raise error(os.strerror(number), OSError(number, os.strerror(number), os.fsdecode(path)))


class Torn:
    """A file whose next write stops in the middle."""

    def __init__(self, file: Any, action: str, path: Any) -> None:
        self._file, self._action, self._path = file, action, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "Torn":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def write(self, data: Any) -> int:
        action, self._action = self._action, ""
        if action:
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            _happen(action, self._path, lambda said, error: error)
            return self._file.write(data[len(data) // 2 :])
        return self._file.write(data)


def _opening(original: Callable[..., Any]) -> Callable[..., Any]:
    def opened(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        stream = original(file, mode, *rest, **options)
        if _watch is None or not set(mode) & set("wax+"):
            return stream
        path = f"/proc/self/fd/{file}" if isinstance(file, int) else os.fspath(file)
        action = _due(WRITE, path)
        return Torn(stream, action, path) if action else stream

    return opened


def _syncing(original: Callable[[int], None]) -> Callable[[int], None]:
    def synced(descriptor: Any) -> None:
        _meet(WRITE, f"/proc/self/fd/{descriptor if isinstance(descriptor, int) else descriptor.fileno()}")
        # nothing is lost by a killed process that it wrote; only a power cut would show whether this was called

    return synced


def _reading(original: Callable[..., Any]) -> Callable[..., Any]:
    def opened(path: Any, *rest: Any, **options: Any) -> Any:
        _meet(READ, path, _in_rust)
        return original(path, *rest, **options)

    return opened


def _saving(
    original: Callable[..., Any], where: int, error: Callable[[str, OSError], BaseException]
) -> Callable[..., Any]:
    """`where`: which argument is the path."""

    def saved(*arguments: Any, **options: Any) -> Any:
        path = arguments[where] if len(arguments) > where else options.get("filename", options.get("f"))
        if not isinstance(path, str | os.PathLike):
            return original(*arguments, **options)  # a file that was opened in Python
        action = _due(WRITE, path)
        result = original(*arguments, **options)
        if action:
            os.truncate(path, os.path.getsize(path) // 2)
            _happen(action, path, error)
            return original(*arguments, **options)
        return result

    return saved


def _in_rust(said: str, error: OSError) -> BaseException:
    from safetensors import SafetensorError

    return SafetensorError(f"Error while serializing: I/O error: {said} (os error {error.errno})")


def _in_cpp(said: str, error: OSError) -> BaseException:
    return RuntimeError(
        f"[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0; file write failed: {said}, {error.errno}"
    )
