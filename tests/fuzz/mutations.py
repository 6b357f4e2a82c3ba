"""Strategies: values that JSON can hold, valid values with something changed in them, damaged bytes."""

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from keylayers.errors import KeylayersError

ODD = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 0.0, -0.5, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "x",
        "nan",
        "1",
        "-1",
        "1e400",
        "\x00",
        "\x1b[31m",
        "\ud800",
        "\u202e",
        "../..",
        "/dev/null",
        "a" * 5000,
    ),
    *([], {}, [[]], [None], {"": None}, {"a": {"a": {}}}),
)
"""Values at which readers stumble."""
SPOTS = (
    b"\x00",
    b"\xff",
    b"\n",
    b'"',
    b"{",
    b"[" * 3000,
    b",",
    b"\xed\xa0\x80",
    b"9" * 5000,
    b"NaN",
    b"null",
    b"\\u0000",
)


def few(share: int = 1) -> settings:
    """Examples for one parser: a fifth of what the profile has, or that by `share` for a slow one."""
    return settings(max_examples=max(2, settings().max_examples // (5 * share)))


def odd_values() -> st.SearchStrategy[Any]:
    """Values at which readers stumble."""
    return st.sampled_from(ODD).map(copy.deepcopy)  # what is drawn may be changed further


@st.composite
def mutated(draw: st.DrawFn, valid: Any, most: int = 3) -> Any:
    """The value with one to three things in it replaced, dropped, renamed, repeated or wrapped."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, most))):
        value = _changed(draw, value)
    return value


def _changed(draw: st.DrawFn, value: Any) -> Any:
    inside = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if not len(inside) or draw(st.integers(0, 7)) == 0:
        return draw(st.one_of(odd_values(), st.just([value]), st.just({"x": value})))
    key = draw(st.sampled_from(list(inside)))
    deed = draw(st.sampled_from(["deeper", "deeper", "deeper", "replace", "drop", "repeat"]))
    if deed == "deeper":
        value[key] = _changed(draw, value[key])
    elif deed == "replace":
        value[key] = draw(odd_values())
    elif deed == "drop":
        del value[key]
    elif isinstance(value, list):
        value.insert(key, copy.deepcopy(value[key]))
    else:
        value[draw(st.sampled_from(["", "x", "sha256", str(key).upper(), f"{key} "]))] = copy.deepcopy(value[key])
    return value


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """The bytes with a bit turned over, a part lost, repeated or replaced; now and then other bytes altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["flip", "cut", "insert", "drop", "repeat", "end"])):
            case "flip" if content:
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                content[at:at] = draw(st.sampled_from(SPOTS))
            case "drop":
                del content[at : at + draw(st.integers(1, 40))]
            case "repeat":
                content[at:at] = content[at : at + draw(st.integers(1, 40))]
            case _:
                del content[at:]
    return bytes(content)


def text_of(value: Any) -> bytes:
    """As JSON, with what strict JSON lacks (NaN, half surrogates), since files hold it, too."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def only_ours(read: Callable[[], Any]) -> Any:
    """What it gives, or None where it refuses in our words; any other error is raised on."""
    try:
        return read()
    except KeylayersError as error:
        assert str(error).strip()
        return None
