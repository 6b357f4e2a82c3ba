"""Compressed files that may only become so large: a few kilobytes must not fill the memory."""

import gzip
import io
import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from keylayers.errors import BadInput
from keylayers.files.foreign import explained
from keylayers.files.regular import check_regular

if TYPE_CHECKING:
    import numpy as np

FREE, RATIO = 2**28, 200
"""Bytes that any file may become, and times its size that it may become beyond; text is packed 3 to 20 times."""


class Unpacked:
    """Counts the bytes that came out of a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.limit, self.bytes = path, FREE + RATIO * os.path.getsize(path), 0

    def add(self, count: int) -> None:
        """Raises BadInput as soon as it is more than the file may become."""
        self.bytes += count
        if self.bytes > self.limit:
            raise BadInput(
                f"{self.path} holds more than {self.limit:,} bytes when unpacked, {RATIO} times its own size and more",
                "give it unpacked, if you know that it is what you want",
            )


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, of one called .gz what is packed in it; all failures while it is read are explained.

    Raises:
        BadInput: for what is no regular file, is damaged, or becomes too large.
    """
    check_regular(path)
    packed = path.suffix.lower() == ".gz"
    problem = f"{path} is not a sound gzip file" if packed else f"{path} cannot be read"
    with explained(problem, "fetch it again"), open(path, "rb") as file:
        if not packed:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as source:
            yield io.BufferedReader(_Counted(source, Unpacked(path)))


class _Counted(io.RawIOBase):
    """What is read of a source is counted."""

    def __init__(self, source: gzip.GzipFile, count: Unpacked) -> None:
        self._source, self._count = source, count

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = 0) -> int:
        return self._source.seek(place, whence)

    def tell(self) -> int:
        return self._source.tell()

    def readinto(self, buffer: Any) -> int:
        size = self._source.readinto(buffer)
        self._count.add(size)
        return size


def read_arrays(path: Path, *remedies: str) -> dict[str, "np.ndarray"]:
    """The plain arrays of an .npz file by name. Headers are held against the bytes that follow before any is believed.

    Raises:
        BadInput: for what is no regular file, no npz, damaged, pickled, or becomes too large.
    """
    import numpy as np

    check_regular(path, *remedies)
    with explained(f"{path} is no .npz of plain arrays", *remedies):
        count = Unpacked(path)
        with zipfile.ZipFile(path) as members:
            for member in members.infolist():
                count.add(member.file_size)
                with members.open(member) as file:
                    _check_header(file, f"{path}, {member.filename}", member.file_size)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}


def _check_header(file: IO[bytes], where: str, size: int) -> None:
    """Raises BadInput unless the header of an array asks for just the bytes that follow it."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise BadInput(f"{where} is an array of format {version}, which only arrays with named fields need")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise BadInput(f"{where} is pickled, and code can run when it is opened; store plain arrays")
    claimed, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if not dtype.itemsize or claimed != there:
        raise BadInput(f"{where} claims {claimed:,} bytes ({dtype} of shape {shape}), and {there:,} follow")
