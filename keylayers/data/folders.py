"""Folders of data: shards side by side, or as `datasets.save_to_disk` writes them."""

import re
from collections.abc import Iterator
from pathlib import Path

from keylayers.data.files import Row, file_kind, file_rows
from keylayers.errors import BadInput, UnknownName

_SAVED, _SEVERAL = "state.json", "dataset_dict.json"
_BESIDE = frozenset({_SAVED, _SEVERAL, "dataset_info.json", "dataset_infos.json"})
_SPLIT = re.compile(r"(train|training|test|testing|valid|validation|val|dev|eval)(?![a-z])", re.IGNORECASE)
_SAME = {"training": "train", "testing": "test", **dict.fromkeys(("valid", "val", "dev", "eval"), "validation")}


def folder_rows(folder: Path, split: str | None = None) -> Iterator[Row]:
    """Every row of a folder's shards in the order of their names; of several splits those of one, `train` by default.

    Raises:
        BadInput: if the folder holds no data file, or files of several kinds.
        UnknownName: for a split that it does not hold.
    """
    for shard in _shards(folder, split):
        yield from file_rows(shard)


def folder_splits(folder: Path) -> dict[str, list[Path]]:
    """Name of a split -> its files; one of empty name where the files name none.

    A split is named by a folder, or by how a file's name begins (`train-00000-of-00002.parquet`).
    """
    found = dict[str, list[Path]]()
    root = folder / "data" if (folder / "data").is_dir() and not _files(folder) else folder
    for file in _files(root):
        named = _SPLIT.match(file.name)
        found.setdefault(_split_name(named.group(1)) if named else "", []).append(file)
    for inner in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        named = _SPLIT.fullmatch(inner.name)
        if files := _files(inner):
            whole = (root / _SEVERAL).is_file()
            found.setdefault(_split_name(inner.name) if named or whole else "", []).extend(files)
    return found


def _split_name(spelled: str) -> str:
    return _SAME.get(spelled.lower(), spelled.lower())


def _files(folder: Path) -> list[Path]:
    names = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    kept = [path for path in names if file_kind(path) and path.name not in _BESIDE]
    return [path for path in kept if path.suffix == ".arrow"] if (folder / _SAVED).is_file() else kept


def _shards(folder: Path, split: str | None) -> list[Path]:
    splits = folder_splits(folder)
    if not splits:
        raise BadInput(f"{folder} is a folder that holds no data file; give a file, or a folder of .jsonl or .parquet")
    if split is not None and split not in splits:
        raise UnknownName(f"split in {folder}", split, sorted(filter(None, splits)))
    name = split or ("train" if "train" in splits else next(iter(splits)))
    if split is None and name not in ("", "train") and len(splits) > 1:
        raise BadInput(f"{folder} has the splits {', '.join(splits)} and none called train; give the folder of one")
    kinds = {file_kind(path) for path in splits[name]}
    if len(kinds) > 1:
        raise BadInput(
            f"{folder} is a folder of several kinds of data files ({', '.join(sorted(map(str, kinds)))}); give one "
            "file, or a folder whose files are all of a kind"
        )
    return splits[name]
