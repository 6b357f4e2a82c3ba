"""Small files that would fill the memory are refused before they do."""

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from keylayers.data.files import file_rows
from keylayers.errors import BadInput
from keylayers.files import bounded
from keylayers.files.bounded import read_arrays, unpacked


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "FREE", 2**16)


def test_a_bomb_in_gzip_is_refused_as_it_unpacks(tmp_path: Path) -> None:
    bomb = tmp_path / "a.jsonl.gz"
    bomb.write_bytes(gzip.compress(b'{"text": "' + bytes(b"a" * 2**22) + b'"}\n', mtime=0))
    with pytest.raises(BadInput, match=r"a\.jsonl\.gz holds more than [\d,]+ bytes when unpacked"):
        list(file_rows(bomb))


def test_what_is_packed_is_read_whole_and_again(tmp_path: Path) -> None:
    text = bytes(np.random.default_rng(0).integers(0, 255, 2**17, dtype=np.uint8))
    (tmp_path / "a.gz").write_bytes(gzip.compress(text, mtime=0))
    with unpacked(tmp_path / "a.gz") as file:
        assert file.read() == text and file.seek(0) == 0 and file.read(5) == text[:5]


def test_a_bomb_in_parquet_is_refused_by_what_it_states_and_by_what_it_becomes(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    for name, dictionary in (("stated", False), ("repeated", True)):
        table = pyarrow.table({"text": ["a" * 1000] * 30_000})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet", compression="gzip", use_dictionary=dictionary)
        with pytest.raises(BadInput, match="when unpacked"):
            list(file_rows(tmp_path / f"{name}.parquet"))


def header(text: bytes, version: bytes = b"\x01\x00", body: bytes = b"") -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + body


def npz(**members: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return held.getvalue()


WRONG = {
    "ten terabytes": npz(x=header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (100000000000, 100)}\n")),
    "no bytes each": npz(x=header(b"{'descr': '|V0', 'fortran_order': False, 'shape': (100000000000,)}\n")),
    "negative": npz(x=header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -2)}\n", body=b"abcd")),
    "unclosed": npz(x=header(b"{'descr': '|u1', 'fortran_order': (((((\n")),
    "deep": npz(x=header(b"(" * 9000)),
    "pickled": npz(x=header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", body=b"\x80\x04N.")),
    "named fields": npz(x=header(b"{}", b"\x03\x00")),
    "no array": npz(x=b"text"),
    "bomb": npz(x=header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (4194304,)}\n", body=bytes(2**22))),
    "no zip": b"PK\x03\x04",
    "nothing": b"",
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_are_none_or_too_large_are_refused(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.npz").write_bytes(WRONG[case])
    with pytest.raises(BadInput, match=r"a\.npz.*; give another|a\.npz"):
        read_arrays(tmp_path / "a.npz", "give another")


def test_plain_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    stored = {"x": np.arange(6, dtype=np.uint8).reshape(2, 3), "names": np.array(["a", "bc"]), "one": np.array(3)}
    np.savez(tmp_path / "a.npz", **stored)
    found = read_arrays(tmp_path / "a.npz")
    assert found.keys() == stored.keys() and all(np.array_equal(found[name], stored[name]) for name in stored)
