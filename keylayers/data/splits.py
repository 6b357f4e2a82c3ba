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
    wanted = [name for name, share in zip(SPLITS, shares, strict=True) if share > 0]
    for by in ("key", "whole_key"):
        parts = parted(records, by=by, shares=shares, seed=seed)  # type: ignore[arg-type]
        if all(parts[name] for name in wanted):
            return Splits(**parts)
    different = len({record.whole_key for record in records})
    empty = next(name for name in wanted if not parts[name])
    raise BadInput(
        f"{records.source}: no record fell into the {empty} split, because its {len(records)} records have "
        f"{different} different prompt{'s' * (different != 1)}, and records of one prompt stay together; give data "
        f"with more different prompts (some thirty part well)"
    )


def parted(
    records: Records,
    *,
    by: Literal["key", "whole_key"] = "key",
    shares: tuple[float, float, float] = DEFAULT_SHARES,
    seed: int = 0,
) -> dict[str, Records]:
    """The parts by name as `split` makes them by one of a record's keys; any may be empty."""
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
