"""The kinds of fault, and one of each drawn for a command whose length and number of file operations are known."""

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults.child import Blow, Ended

FILE_SIZES = (0, 100, 3_000, 20_000, 100_000)
TWICE = 0.15
"""Seconds between two signals of somebody in a hurry."""

Draw = Callable[[random.Random, Ended], Blow]
"""(Random numbers, how an uninterrupted run went) -> what hits the next one."""
Hurt = Callable[[random.Random, Path], str]
"""Damages a file; says how."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault: of a running command, or of a file that one stored."""

    name: str
    draw: Draw | None = None
    hurt: Hurt | None = None
    killed_first: bool = False
    """Whether the damaged file is an interrupted run's."""
    ends_by_itself: bool = True
    """Whether the command lives to tidy up; a killed one's temporary files are for the next run to delete."""
    starves: bool = False
    """Whether memory is short, where a traceback is what Python has to say."""


def _at_moment(*signals: int) -> Draw:
    def draw(draws: random.Random, usual: Ended) -> Blow:
        first = draws.uniform(0, 1.05) * usual.seconds
        return Blow(signals=tuple((first + TWICE * place, number) for place, number in enumerate(signals)))

    return draw


def _at_operation(action: str) -> Draw:
    return lambda draws, usual: Blow(draws.randint(1, max(1, usual.operations)), action)


def _small_files(draws: random.Random, usual: Ended) -> Blow:
    return Blow(largest_file=draws.choice(FILE_SIZES))


def flip(draws: random.Random, path: Path) -> str:
    """Turns one bit over."""
    content = bytearray(path.read_bytes())
    place, bit = draws.randrange(len(content)), draws.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} of {len(content)}"


def cut(draws: random.Random, path: Path) -> str:
    """Takes away the end."""
    size = path.stat().st_size
    left = draws.randrange(size)
    with open(path, "r+b") as file:
        file.truncate(left)
    return f"cut to {left} of {size} bytes"


def delete(draws: random.Random, path: Path) -> str:
    """Takes away the file."""
    path.unlink()
    return "deleted"


KINDS = (
    Kind("killed at some moment", _at_moment(signal.SIGKILL), ends_by_itself=False),
    Kind("killed at a file operation", _at_operation("kill"), ends_by_itself=False),
    Kind("asked to end (SIGTERM)", _at_moment(signal.SIGTERM)),
    Kind("Ctrl-C", _at_moment(signal.SIGINT)),
    Kind("Ctrl-C twice", _at_moment(signal.SIGINT, signal.SIGINT)),
    Kind("Ctrl-C at a file operation", _at_operation("interrupt")),
    Kind("disk full once", _at_operation("full once")),
    Kind("disk full for good", _at_operation("full")),
    Kind("I/O error", _at_operation("unreadable")),
    Kind("no large files (EFBIG)", _small_files),
    Kind("out of memory, Python's", _at_operation("memory"), starves=True),
    Kind("out of memory, torch's", _at_operation("torch's memory"), starves=True),
    Kind("bit flipped, finished run", hurt=flip),
    Kind("bit flipped, interrupted run", hurt=flip, killed_first=True),
    Kind("end of a file lost, finished run", hurt=cut),
    Kind("end of a file lost, interrupted run", hurt=cut, killed_first=True),
    Kind("file deleted, finished run", hurt=delete),
)
