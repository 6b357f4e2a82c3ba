"""Splits: train, calibration and test parts by a hash of the prompt, so that duplicates never straddle them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, combinations
from math import isclose
from pathlib import Path
from typing import Literal

from keylayers.data.formats import BAD_SHARE, load_records
from keylayers.data.records import Record, Records
from keylayers.data.sources import source_kind
from keylayers.errors import BadInput, UnknownName

SPLITS = ("train", "calibration", "test")
DEFAULT_SHARES = (0.7, 0.15, 0.15)


@dataclass(frozen=True)
class Splits:
    """Three parts of one source that share no prompt."""

    train: Records
    """To tune on."""
    calibration: Records
    """To score layers and choose settings on."""
    test: Records
    """To judge on, once."""


def split(records: Records, *, shares: tuple[float, float, float] = DEFAULT_SHARES, seed: int = 0) -> Splits:
    """Parts records by a hash of their normalised prompt; a prompt's part depends on nothing but itself and the seed.

    So the same prompt falls into the same part in every file, in any order, however much the file grows. Within a part
    the records are in the order of their own hashes. Shares hold in expectation; a share of 0 leaves its part empty.
    Conversations count as of one prompt if they open with the same question; where they open so alike that a part
    would stay empty, if all that is said before the last answer is the same.

    Raises:
        BadInput: if the shares do not sum to 1, or if a part that has a share got no record.
    """
    if any(share < 0 for share in shares) or not isclose(sum(shares), 1.0, abs_tol=1e-9):
        raise BadInput(f"shares={shares}: expected three shares that sum to 1")
    parts = parted(records, shares=shares, seed=seed)
    empty = next((name for name, share in zip(SPLITS, shares, strict=True) if share > 0 and not parts[name]), None)
    if empty is None:
        return Splits(**parts)
    different = len({record.whole_key for record in records})
    raise BadInput(
        f"{records.source}: no record fell into the {empty} split, because its {len(records)} records have "
        f"{different} different prompt{'s' * (different != 1)}, and records of one prompt stay together",
        "give data with more different prompts (some thirty part well)",
    )


def parted(
    records: Records, *, shares: tuple[float, float, float] = DEFAULT_SHARES, seed: int = 0
) -> dict[str, Records]:
    """The parts by name as `split` makes them, but any may be empty."""
    wanted = [name for name, share in zip(SPLITS, shares, strict=True) if share > 0]
    by_opening = _parted(records, "key", shares, seed)
    if all(by_opening[name] for name in wanted):
        return by_opening
    by_whole = _parted(records, "whole_key", shares, seed)
    return by_whole if sum(map(bool, by_whole.values())) > sum(map(bool, by_opening.values())) else by_opening


def _parted(
    records: Records, by: Literal["key", "whole_key"], shares: tuple[float, float, float], seed: int
) -> dict[str, Records]:
    bounds = list(accumulate(shares))
    members: dict[str, list[Record]] = {name: [] for name in SPLITS}
    for record in sorted(records, key=lambda record: _digest(seed, record.canonical)):
        place = int.from_bytes(_digest(seed, getattr(record, by))[:7], "big") / 2**56  # uniform in [0, 1), exact
        part = next((i for i, bound in enumerate(bounds) if place < bound), _last_used(shares))
        members[SPLITS[part]].append(record)
    return {name: replace(records, records=tuple(members[name]), split=name, parted_by=by) for name in SPLITS}


def load_splits(
    source: str | Path,
    *,
    shares: tuple[float, float, float] = DEFAULT_SHARES,
    seed: int = 0,
    limit: int | Mapping[str, int] | None = None,
    columns: Mapping[str, str] | None = None,
    bad_share: float = BAD_SHARE,
    format: str = "auto",
) -> Splits:
    """The train, calibration and test parts of a source: its own where it is bundled, else by `split`.

    A hub data set is split within its `train` part. `limit` caps each part, or the parts it names, keeping the records
    of lowest hash, so that a larger limit only adds records.

    Raises:
        BadInput: as `load_records` and `split`, or if two parts share a prompt.
    """
    for name in limit if isinstance(limit, Mapping) else ():
        if name not in SPLITS:
            raise UnknownName("split", name, SPLITS)
    source = str(source)
    if source_kind(source) == "bundled":
        own = (load_records(source, split=name, columns=columns, bad_share=bad_share, format=format) for name in SPLITS)
        parts = Splits(*own)
    else:
        records = load_records(source, columns=columns, bad_share=bad_share, format=format)
        parts = split(records, shares=shares, seed=seed)
    assert_disjoint(parts.train, parts.calibration, parts.test)
    return Splits(**{name: _capped(getattr(parts, name), limit, seed) for name in SPLITS})


def pooled(
    source: str | Path,
    *,
    most: int,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    bad_share: float = BAD_SHARE,
) -> Splits:
    """The records to look at where nothing is trained on any, as the calibration part: all, up to `most`.

    Those of the calibration part come first, then those of the training part, and those of the test part last; the
    parts they are from are the pool's `split`. The training part is beside it, the test part is empty; no part has to
    have records, so that a handful of them, or many of one prompt, will do.

    Raises:
        BadInput: as `load_records`.
    """
    source = str(source)
    if source_kind(source) == "bundled":
        parts = {name: load_records(source, split=name, columns=columns, bad_share=bad_share) for name in SPLITS}
    else:
        parts = parted(load_records(source, columns=columns, bad_share=bad_share), seed=seed)
    chosen, names = list[Record](), list[str]()
    for name in ("calibration", "train", "test"):
        room = most - len(chosen)
        if room and len(parts[name]):
            chosen += _capped(parts[name], room, seed).records
            names.append(name)
    pool = replace(parts["calibration"], records=tuple(chosen), split=", ".join(names))
    return Splits(parts["train"], pool, replace(parts["test"], records=()))


def assert_disjoint(*parts: Records) -> None:
    """Checks that no prompt occurs in two of the parts. Raises BadInput, naming both records."""
    for one, other in combinations(parts, 2):
        by = one.parted_by if one.source == other.source else "key"
        seen = {getattr(record, by): record.origin for record in one}
        for record in other:
            key = getattr(record, by)
            if key in seen:
                raise BadInput(
                    f"the same prompt is in two parts that must be disjoint: {seen[key]} and {record.origin} "
                    f"({key[:60]!r}); part the data with load_splits"
                )


def _capped(records: Records, limit: int | Mapping[str, int] | None, seed: int) -> Records:
    cap = limit.get(records.split or "") if isinstance(limit, Mapping) else limit
    if cap is None or cap >= len(records):
        return records
    if cap < 1:
        raise BadInput(f"limit={cap} for the {records.split} split: expected at least 1 record")
    chosen = sorted(records, key=lambda record: _digest(seed, record.canonical))[:cap]
    return replace(records, records=tuple(chosen))


def _last_used(shares: tuple[float, ...]) -> int:
    return max(i for i, share in enumerate(shares) if share > 0)


def _digest(seed: int, content: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{content}".encode()).digest()
