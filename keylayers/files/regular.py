"""Paths that may be opened: reading a pipe may wait for ever, and a device never ends.

Whether something is there is asked of `os.path`, which answers no for a name that no file can have (too long, with a
NUL); `pathlib` raises.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from keylayers.errors import BadInput

KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: str | os.PathLike[str], *remedies: str) -> Path:
    """The path, if it leads to a regular file. Links are followed; nothing is opened.

    Raises:
        BadInput: for a folder, a pipe, a socket or a device, a path that leads nowhere, or one that cannot be.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(f"{path} cannot be read ({why})", *remedies) from error
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in KINDS if test(mode)), "no regular file")
        raise BadInput(f"{path} is {kind}, and only regular files are read", *remedies)
    return path


def check_folder(folder: str | os.PathLike[str], *, within: Iterable[str] = ()) -> Path:
    """The folder, if a library may open whatever lies in it (and in the folders `within`): files and folders alone.

    Raises:
        BadInput: naming the pipe, socket or device in it, which would be waited for.
    """
    folder = Path(folder)
    for place in (folder, *(folder / name for name in within)):
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else ():
            if os.path.exists(place / name) and not os.path.isdir(place / name):
                check_regular(place / name, "take it out of the folder")
    return folder
