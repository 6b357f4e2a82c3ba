"""Digests depend on the content alone; what JSON cannot hold is refused with its place."""

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylayers.errors import BadInput
from keylayers.runs import digest, file_sha256, git_commit, machine, plain, versions

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_a_digest_survives_the_way_through_a_file(value: object) -> None:
    assert digest(json.loads(json.dumps(value))) == digest(value)


@given(st.dictionaries(st.text(), json_values, min_size=2, max_size=6))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict) -> None:
    assert digest(dict(reversed(value.items()))) == digest(value)


@given(json_values, json_values)
def test_digests_are_equal_exactly_where_the_json_is(a: object, b: object) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (digest(a) == digest(b)) == same


def test_a_digest_is_the_sha256_of_sorted_json_without_spaces() -> None:
    expected = hashlib.sha256(b'{"a":[1,2.5,null],"b":"\\u00e9"}').hexdigest()
    assert digest({"b": "é", "a": (1, 2.5, None)}) == expected


def test_digests_are_the_same_in_another_process() -> None:
    code = "from keylayers.runs import digest; print(digest({'rate': 0.1 + 0.2, 'names': {'b', 'a', 'c'}}))"
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert printed.strip() == digest({"names": ["a", "b", "c"], "rate": 0.30000000000000004})


@dataclass(frozen=True)
class Settings:
    rate: float = 0.1
    layers: tuple[str, ...] = ("a", "b")


def test_plain_turns_values_of_the_trade_into_json() -> None:
    value = {"settings": Settings(), "out": Path("runs/a"), "score": np.float64(0.5), "mask": np.array([True, False])}
    expected = {"settings": {"rate": 0.1, "layers": ["a", "b"]}, "out": "runs/a", "score": 0.5, "mask": [True, False]}
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value))) == expected


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_a_number_that_is_not_finite_is_refused_with_its_place(number: float) -> None:
    with pytest.raises(BadInput, match=r"arms\[1\]\.loss is -?(nan|inf)"):
        plain({"arms": [{"loss": 1.0}, {"loss": number}]})


def test_what_json_cannot_hold_is_refused_with_its_place() -> None:
    with pytest.raises(BadInput, match="model is a object"):
        plain({"model": object()})


def test_file_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"abc" * 700_000)
    assert file_sha256(tmp_path / "data") == hashlib.sha256(b"abc" * 700_000).hexdigest()
    with pytest.raises(BadInput, match="cannot read"):
        file_sha256(tmp_path / "absent")


def test_versions_and_machine_say_what_ran() -> None:
    assert versions()["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions()["numpy"] == np.__version__
    assert machine()["cores"] >= 1
    assert digest([versions(), machine(), git_commit()])  # storable
