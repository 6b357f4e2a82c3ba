"""Standard output and error as they may be: closed, full, read by `head`, or a terminal that obeys what files say."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from keylayers.files import printable

READER_GONE = 128 + 13
"""Exit status of a command whose output nobody reads any more, as the shell has it for SIGPIPE."""


class Shown:
    """A stream with control characters spelled out in all that is written; rich, which colours, has the bare one.

    Where it cannot be written to, it is put on the null device once and for all: results that cannot be shown end the
    command, and what is said on standard error does not.
    """

    def __init__(self, stream: IO[str], name: str) -> None:
        self.rich_proxied_file, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        """Writes the text as a terminal may have it; its own length, as callers expect."""
        with self._ending():
            self.rich_proxied_file.write(printable(text))
        return len(text)

    def flush(self) -> None:
        """Hands on what was written."""
        with self._ending():
            self.rich_proxied_file.flush()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.rich_proxied_file.fileno())  # what waits in buffers goes there, too
            os.close(null)
            if self._name == "standard error":
                return
            if error.errno != errno.EPIPE:
                sys.stderr.write(f"keylayers: cannot write to {self._name}: {error.strerror}\n")
            # Not an Exception: nothing that examines models or parses files should take it for a finding of its own.
            raise SystemExit(READER_GONE if error.errno == errno.EPIPE else 2) from None


@contextmanager
def shown_streams() -> Iterator[None]:
    """Until the block ends, standard output and error are `Shown`; where one is closed, it is the null device."""
    for number in range(3):  # else the next file that is opened would take the number, and get what is printed
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    for name, number in (("stdout", 1), ("stderr", 2)):
        if (stream := getattr(sys, name)) is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  (lasts as long as the process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal of few characters gets them spelled out
        setattr(sys, name, Shown(stream, "standard output" if number == 1 else "standard error"))
    shown = sys.stdout, sys.stderr
    try:
        yield
    finally:
        try:
            for stream in shown:
                stream.flush()
        finally:
            sys.stdout, sys.stderr = before
