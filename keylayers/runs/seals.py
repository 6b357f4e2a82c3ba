"""Folders that other libraries fill (adapters, optimiser states, tuned models), sealed by their files' digests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keylayers.errors import BadInput
from keylayers.files.atomic import replacing_folder
from keylayers.files.checked import read_json, write_json
from keylayers.files.digests import file_sha256

SEAL = "seal.json"
FORMAT = "keylayers/seal/1"


@contextmanager
def sealed_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder to be filled; then it is sealed and takes the place of what is there, whole or not at all.

    Raises:
        BadInput: if it cannot be written, whatever library was writing it.
    """
    with replacing_folder(path) as temporary:
        yield temporary
        seal(temporary)


def seal(folder: Path) -> None:
    """Stores the digests of all files in the folder, in a file that carries its own; it marks the folder as whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    digests = {str(path.relative_to(folder)): file_sha256(path) for path in files}
    write_json(folder / SEAL, {"format": FORMAT, "files": digests})


def is_sealed(folder: Path) -> bool:
    """Whether the folder carries a seal."""
    return (folder / SEAL).is_file()


def sealed_files(folder: Path) -> dict[str, str]:
    """The digests in a folder's seal, by name. Raises BadInput if the seal is damaged."""
    return dict(read_json(folder / SEAL, files=dict)["files"])


def damage(folder: Path) -> dict[str, str]:
    """What is wrong with the files of a sealed folder, by name; empty where each is there and holds what was sealed."""
    try:
        sealed = sealed_files(folder)
    except BadInput as error:
        return {SEAL: str(error)}
    return {name: what for name, sha in sealed.items() if (what := _differs(folder / name, sha)) is not None}


def check_seal(folder: Path, *remedies: str) -> None:
    """Raises BadInput with these remedies if the folder carries a seal that does not fit; none is needed."""
    if is_sealed(folder) and (wrong := damage(folder)):
        name, what = next(iter(wrong.items()))
        more = f", and {len(wrong) - 1} more of its files are damaged" if len(wrong) > 1 else ""
        raise BadInput(f"{str(folder / name)!r} {what}{more}", *remedies)


def _differs(path: Path, sha256: str) -> str | None:
    if not path.is_file():
        return "is missing"
    return None if file_sha256(path) == sha256 else f"does not match its sha256 in {SEAL}: damaged"
