"""What a run is given from outside, known by content: files and folders by sha256, hub repositories by their commit."""

import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from keylayers.errors import BadInput
from keylayers.files.digests import Content, content_of, files_read
from keylayers.runs.progress import note
from keylayers.runs.seals import SEAL, sealed_files

READERS = 4
MUCH = 4 * 2**30
"""Bytes whose reading takes long enough to be said."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")

Source = str | Path | None


@dataclass(frozen=True)
class Given:
    """Models and data as the user named them: files, folders, hub ids, factories; bundled ones have a version."""

    models: tuple[Source, ...] = ()
    data: tuple[Source, ...] = ()

    def contents(self, earlier: Mapping[str, Content]) -> dict[str, Content]:
        """The content of every file that these read, by its path; of a hub id its commit.

        Weights too are read whole, unless nothing has touched them since `earlier` was made.

        Raises:
            BadInput: for a file that cannot be read or that does not match the seal of its folder.
        """
        files = dict(_files((*self.models, *self.data)))
        if (much := sum(path.stat().st_size for name, path in files.items() if name not in earlier)) > MUCH:
            note(f"reading {much / 2**30:.0f} GiB once, so that a later session knows whether they are the same")
        with ThreadPoolExecutor(READERS) as readers:  # sha256 leaves the interpreter to others
            found = dict(zip(files, readers.map(content_of, files.values(), map(earlier.get, files)), strict=True))
        _check_seals(files, found)
        for kind, sources in (("model", self.models), ("dataset", self.data)):
            for name in dict.fromkeys(map(str, filter(None, sources))):
                repository = name.partition(":")[0]
                if _HUB_ID.fullmatch(repository) and not os.path.exists(_place(name)):
                    found[name] = Content(hub_commit(repository, kind) or "")
        return found


def hub_commit(repository: str, kind: str) -> str | None:
    """The commit that a hub id means now: the hub's newest, offline that of the cache; None where neither is known."""
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE:
        try:
            return HfApi().repo_info(repository, repo_type=kind, timeout=10).sha
        except Exception:  # whatever it is, loading meets it too, and says so
            pass
    cached = Path(constants.HF_HUB_CACHE, f"{kind}s--{repository.replace('/', '--')}", "refs", "main")
    return cached.read_text().strip() if cached.is_file() else None


def _files(sources: tuple[Source, ...]) -> Iterator[tuple[str, Path]]:
    for source in dict.fromkeys(map(str, filter(None, sources))):
        place = _place(source)
        if os.path.exists(place):
            for name, path in files_read(place).items():
                yield (f"{source.rstrip('/')}/{name}" if name else source), path
        elif ":" in source:  # a factory; installed packages have versions, modules of the working folder have none
            code = f"{source.partition(':')[0].replace('.', os.sep)}.py"
            if os.path.isfile(code):
                yield code, Path(code)


def _place(source: str) -> Path:
    if source.startswith("$KEYLAYERS_"):  # a study's folders, whose places are this machine's own
        source = os.path.expandvars(source)
    return Path(source).expanduser()


def _check_seals(files: Mapping[str, Path], found: Mapping[str, Content]) -> None:
    """Raises BadInput for a file of a sealed folder (a tuned model of a run, say) that is not what was sealed."""
    for place in dict.fromkeys(path.parent for path in files.values() if (path.parent / SEAL).is_file()):
        sealed = sealed_files(place)
        for name, path in files.items():
            stated = sealed.get(path.name) if path.parent == place else None
            if stated not in (None, found[name].sha256):
                raise BadInput(
                    f"{str(path)!r} does not match its sha256 in {SEAL} beside it: damaged",
                    "make it again",
                    f"delete {str(place / SEAL)!r} if it was changed on purpose",
                )
