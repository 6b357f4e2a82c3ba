"""Where rows come from: a file or folder, a data set of the hub, or one that is bundled; told by how it is spelled."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from keylayers.data.files import Row, file_kind, file_rows, known_suffixes
from keylayers.data.folders import folder_rows, folder_splits
from keylayers.errors import BadInput, UnknownName
from keylayers.files import reason

BUNDLED = "bundled:"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?")


def source_kind(source: str) -> Literal["bundled", "file", "hub"]:
    """How a source is spelled: `bundled:NAME`; `owner/name` where no file is of that name; else a file or folder."""
    if source.startswith(BUNDLED):
        return "bundled"
    path = Path(source).expanduser()
    return "hub" if not path.exists() and _HUB_ID.fullmatch(source) and file_kind(path) is None else "file"


def has_splits(source: str) -> bool:
    """Whether a source has splits of its own: all but files, and folders whose files name none."""
    path = Path(source).expanduser()
    return source_kind(source) != "file" or (path.is_dir() and any(folder_splits(path)))


def source_rows(source: str, split: str | None = None) -> Iterator[Row]:
    """Every row of a source. `split` is for those that have splits of their own (default `train`); a file has none.

    Raises:
        BadInput: if the source cannot be read; UnknownName: if no bundled set has that name.
    """
    kind = source_kind(source)
    if kind == "bundled":
        return _bundled_rows(source.removeprefix(BUNDLED), split or "train")
    if kind == "hub":
        return _hub_rows(source, split or "train")
    path = Path(source).expanduser()
    if split is not None and not has_splits(source):
        raise BadInput(f"{source} is a file and has no split {split!r} of its own; split it with load_splits")
    return folder_rows(path, split) if path.is_dir() else file_rows(path)


def source_files(source: str | None) -> tuple[str, ...]:
    """What a source is to be known again by: a folder's data files, of all its splits; of any other kind itself."""
    if source is None:
        return ()
    path = Path(source).expanduser()
    if source_kind(source) != "file" or not path.is_dir():
        return (source,)
    return tuple(str(file) for files in folder_splits(path).values() for file in files)


def _bundled_rows(name: str, split: str) -> Iterator[Row]:
    from keylayers.world import datasets as bundled

    if name not in bundled.names():
        raise UnknownName("bundled data set", name, bundled.names())
    for index, row in enumerate(bundled.load(name, split)):
        yield f"{BUNDLED}{name}/{split}[{index}]", row


def _hub_rows(source: str, split: str) -> Iterator[Row]:
    import datasets

    name, _, configuration = source.partition(":")
    try:
        table = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:  # the hub client raises a dozen kinds; each means that the data did not come
        cause = reason(error)
        raise BadInput(
            f"data set {source!r} (split {split!r}) could not be had from the hub: {cause}. If you meant a file: there "
            f"is none of that name, and data files end in {known_suffixes()}. Offline, download it first and give the "
            f"file, or use a bundled set ({BUNDLED}NAME)"
        ) from error
    for index, row in enumerate(table):
        yield f"{source}/{split}[{index}]", row
