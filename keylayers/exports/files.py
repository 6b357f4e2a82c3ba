"""Several files that belong together: all in their places, or none."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from keylayers.errors import BadInput
from keylayers.files.atomic import replacing


def write_files(folder: Path, texts: Mapping[str, str], overwrite: bool = False) -> list[Path]:
    """Writes each text to its path below the folder, and gives the paths; a file that has its text already is kept.

    All are written beside their places first, so that a full disk or a folder that cannot be written leaves nothing.

    Raises:
        BadInput: if that fails, or a file of that name is there with another text and `overwrite` is not set.
    """
    places = {folder / name: text for name, text in texts.items()}
    _check(folder, places, overwrite)
    present = {place for place in places if place.exists()}
    missing = [parent for parent in {up for place in places for up in place.parents} if not parent.exists()]
    done = False
    try:
        with ExitStack() as written:  # at its end each is renamed into its place
            for place, text in places.items():
                written.enter_context(replacing(place)).write_bytes(text.encode())
        done = True
    finally:
        if not done:
            _take_back([place for place in places if place not in present], missing)
    return list(places)


def _take_back(files: Iterable[Path], folders: Iterable[Path]) -> None:
    """Removes the new files, and the new folders that are empty then."""
    for file in files:
        with suppress(OSError):
            file.unlink()
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):
            folder.rmdir()


def _check(folder: Path, places: Mapping[Path, str], overwrite: bool) -> None:
    """Raises BadInput for what is in the way, before anything is written."""
    for parent in [folder, *folder.parents]:
        if parent.exists():
            if not parent.is_dir():
                raise BadInput(f"cannot write into {str(folder)!r}: {parent} is a file", "give another `out`")
            break
    for place, text in places.items():
        if place.is_dir():
            raise BadInput(f"cannot write {str(place)!r}: there is a folder of that name", "give another `out`")
        if place.is_file() and not overwrite and place.read_bytes() != text.encode():
            raise BadInput(f"{place} exists and says something else", "give another `out`", "give `overwrite`")
