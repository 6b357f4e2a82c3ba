"""A command run in a fork of this process, which has imported everything: a second instead of ten."""

import atexit
import gc
import importlib
import os
import pkgutil
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from faults import operations

HANGS = 300.0
"""Seconds after which a command counts as stuck; the slowest takes ten."""
HEAVY = "torch datasets matplotlib.pyplot peft transformers.models.llama.modeling_llama transformers.trainer".split()
EARLY = {signal.SIGINT, signal.SIGTERM}
LINGERS = 8.0
"""Seconds in which workers must have noticed that their parent is gone."""


@dataclass(frozen=True)
class Blow:
    """What hits a running command: something at a file operation, signals, or a limit on the size of files."""

    operation: int = 0
    action: str = ""
    signals: tuple[tuple[float, int], ...] = ()
    """(Seconds since the start, signal)."""
    largest_file: int | None = None
    """In bytes, enforced by the kernel."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int | None
    """Exit status, a signal's negative number, or None for a command that was stuck."""
    seconds: float
    said: str
    operations: int
    """File operations below its folder; 0 if it was killed."""
    orphans: int
    """Processes that it started and that outlived it."""

    @property
    def traceback(self) -> bool:
        """Whether it showed one."""
        return "Traceback (most recent call last)" in self.said


def preload(heavy: bool) -> None:
    """Imports what commands import, so that forks need not."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS="1",
        MKL_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
        CUDA_VISIBLE_DEVICES="",
        MPLBACKEND="Agg",
        COLUMNS="200",
    )
    operations.install(heavy)
    import keylayers.cli.app

    if heavy:
        for name in HEAVY:
            importlib.import_module(name)
        sys.modules["torch"].set_num_threads(1)  # type: ignore[attr-defined]
        for module in pkgutil.walk_packages(keylayers.__path__, "keylayers."):
            if not module.name.endswith("__main__"):
                with suppress(ImportError):  # the command that needs it will say so
                    importlib.import_module(module.name)
        gc.collect()
        gc.freeze()


def run(words: Sequence[str], folder: Path, blow: Blow = Blow()) -> Ended:
    """Runs `keylayers WORDS` in the folder, hit by the blow."""
    told, tell = os.pipe()
    said = folder / "said.txt"
    said.touch()  # however early the child is killed
    sys.stdout.flush()
    began = time.monotonic()
    signal.pthread_sigmask(signal.SIG_BLOCK, EARLY)  # one that comes before the child is the command must wait for that
    child = os.fork()
    if child == 0:
        os.close(told)
        _become(words, folder, said, blow, tell)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EARLY)
    os.close(tell)
    status = _wait(child, began, blow.signals)
    seconds = time.monotonic() - began
    orphans = _outlived(child)
    with os.fdopen(told, "rb") as pipe:
        counted = pipe.read()
    return Ended(status, seconds, said.read_text(errors="replace"), int(counted or 0), orphans)


def _become(words: Sequence[str], folder: Path, said: Path, blow: Blow, tell: int) -> NoReturn:
    """In the child: be the command, and never return."""
    code = 99
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
            os.dup2(os.open(os.devnull if number == 0 else said, flags, 0o666), number)
        os.dup2(1, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        os.makedirs(folder / "tmp", exist_ok=True)
        if blow.largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (blow.largest_file, resource.RLIM_INFINITY))
        sys.argv = ["keylayers", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        watch = operations.arm(str(folder), blow.operation, blow.action)
        code = _main()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(tell, str(watch.seen).encode())
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def _main() -> int:
    """What Python does around a program: its status, or a traceback and 1."""
    from keylayers.cli import main

    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, EARLY)
    except KeyboardInterrupt:
        return 130  # before the command began: there is nothing that it could tidy up
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _wait(child: int, began: float, signals: Sequence[tuple[float, int]]) -> int | None:
    """The child's status; sends the signals when it is time."""
    due = sorted(signals)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        now = time.monotonic() - began
        if done:
            return os.waitstatus_to_exitcode(status)
        if now > HANGS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        if due and now >= due[0][0]:
            os.kill(child, due.pop(0)[1])
        time.sleep(0.002)


def _outlived(group: int) -> int:
    """Processes of the group that are still there after a while; they are ended then."""
    until = time.monotonic() + LINGERS
    while (living := _living(group)) and time.monotonic() < until:
        time.sleep(0.1)
    for process in living:
        os.kill(process, signal.SIGKILL)
    return len(living)


def _living(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = entry.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # gone meanwhile
        if its_group == str(group) and state != "Z":
            found.append(int(entry.parent.name))
    return found
