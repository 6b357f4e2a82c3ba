"""Files are whole or absent, carry their checksum, and any damage is found."""

import errno
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import BadInput
from keylayers.runs import read_json, read_tensors, write_json, write_tensors, write_text

VALUE = {"name": "llama", "scores": [0.5, -1.25, 1e-300], "none": None, "nested": {"é": True}}


def example_tensors() -> dict[str, torch.Tensor]:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {
        "float64": torch.linspace(0, 1, 5, dtype=torch.float64),
        "bfloat16": torch.linspace(-2, 2, 7).to(torch.bfloat16),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 4),
        "transposed": base.T,
        "row": base[1],
        "same row": base[1],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }


def test_json_comes_back_equal(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "value.json", VALUE)
    assert read_json(tmp_path / "new" / "value.json") == VALUE
    assert os.listdir(tmp_path / "new") == ["value.json"]


def test_tensors_come_back_bit_identical(tmp_path: Path) -> None:
    tensors = example_tensors()
    write_tensors(tmp_path / "state.safetensors", tensors, {"step": 3, "policy": "top:30%"})
    back, meta = read_tensors(tmp_path / "state.safetensors")
    assert meta == {"step": 3, "policy": "top:30%"}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name


def test_text_replaces_the_earlier_text(tmp_path: Path) -> None:
    write_text(tmp_path / "a.md", "a long first text")
    write_text(tmp_path / "a.md", "été")
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "été"


@given(st.data())
def test_any_flipped_bit_of_a_json_file_is_found_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flip") / "value.json"
    write_json(path, VALUE)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        assert read_json(path) == VALUE  # a space turned into another one, at most
    except BadInput as error:
        assert "damaged" in str(error)


@given(st.data())
def test_any_flipped_bit_of_a_tensor_file_is_found_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("flip") / "state.safetensors"
    tensors = {"a": torch.arange(6, dtype=torch.float32), "b": torch.ones(2, 2, dtype=torch.float64)}
    write_tensors(path, tensors, {"step": 1})
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        back, meta = read_tensors(path)
    except BadInput as error:
        assert "damaged" in str(error)
    else:
        assert meta == {"step": 1}
        assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_every_truncation_is_found(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", VALUE)
    write_tensors(tmp_path / "state.safetensors", {"a": torch.ones(3)}, {"step": 1})
    for name, read in [("value.json", read_json), ("state.safetensors", read_tensors)]:
        whole = (tmp_path / name).read_bytes()
        for length in range(len(whole) - 2):  # without the last newline the JSON is still whole
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(BadInput, match="damaged"):
                read(tmp_path / name)


def test_files_without_a_checksum_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "hand.json").write_text('{"a": 1}')
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BadInput, match="no sha256"):
        read_json(tmp_path / "hand.json")
    with pytest.raises(BadInput, match="no sha256"):
        read_tensors(tmp_path / "other.safetensors")


def test_missing_files_are_named(tmp_path: Path) -> None:
    for read in (read_json, read_tensors):
        with pytest.raises(BadInput, match=r"no file .*absent"):
            read(tmp_path / "absent")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EACCES, "not writable"),
        (errno.EIO, "give another `out`"),
    ],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str, call: str
) -> None:
    write_json(tmp_path / "value.json", {"old": True})
    write_tensors(tmp_path / "state.safetensors", {"old": torch.ones(1)})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(BadInput, match=remedy):
        write_json(tmp_path / "value.json", {"new": True})
    with pytest.raises(BadInput, match=remedy):
        write_tensors(tmp_path / "state.safetensors", {"new": torch.ones(1)})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_really_full_disk_is_named() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left"), open(full, "wb", buffering=0) as file:
        file.write(b"x")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadInput, match="a file is in the place of a folder"):
        write_text(tmp_path / "file" / "a.json", "{}")
    assert os.listdir(tmp_path) == ["file"]
