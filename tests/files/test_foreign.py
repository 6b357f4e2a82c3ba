"""Failures of other libraries in our words: whole, printable, on one line, with what to do."""

import json

import pytest

from keylayers.errors import BadInput, BadScores, KeylayersError
from keylayers.files import explained, printable, reason


def said(error: BaseException) -> str:
    with pytest.raises(BadInput) as caught, explained("cannot read a.npz", "give another file"):
        raise error
    return str(caught.value)


@pytest.mark.parametrize(
    "error", [NotImplementedError("that compression"), EOFError(), SyntaxError("("), OverflowError()]
)
def test_whatever_a_parser_raises_names_file_and_remedy(error: Exception) -> None:
    text = said(error)
    assert text.startswith("cannot read a.npz: ") and text.endswith("; give another file.")


def test_the_whole_reason_is_shown_on_one_line() -> None:
    text = said(RuntimeError("Error(s) in loading state_dict for X:\n\tsize mismatch for w:\n\t [8, 4] and [8, 2]."))
    assert "size mismatch for w: [8, 4] and [8, 2]; give" in text


def test_what_says_nothing_of_itself_is_named() -> None:
    assert reason(KeyError("dtype")) == "KeyError ('dtype')"
    assert reason(EOFError()) == "EOFError"
    assert reason(MemoryError()) == "not enough memory"
    assert reason(OSError(28, "No space left on device")) == "No space left on device"


def test_a_reason_of_many_pages_keeps_its_beginning_and_end() -> None:
    text = reason(ValueError("first " + "x" * 100_000 + " last"))
    assert len(text) < 3000 and text.startswith("first") and text.endswith("last")


def test_a_panic_is_a_failure_and_ctrl_c_is_none() -> None:
    panic = type("PanicException", (BaseException,), {})
    assert "index out of bounds" in said(panic("index out of bounds"))
    with pytest.raises(KeyboardInterrupt), explained("cannot read"):
        raise KeyboardInterrupt


def test_our_own_errors_pass_as_they_are() -> None:
    with pytest.raises(KeylayersError) as caught, explained("cannot read"):
        raise BadScores("two layers of one name")
    assert type(caught.value) is BadScores and str(caught.value) == "two layers of one name"


def test_nesting_that_a_parser_cannot_follow_is_explained() -> None:
    with pytest.raises(BadInput, match="nested too deeply"), explained("cannot read"):
        json.loads("[" * 100_000)


def test_no_character_that_a_terminal_obeys_is_left() -> None:
    bad = "\x1b[31m \x07 \r \x9b \x08 \u202e \u2066 \u2028 \ud800 \U000e0041 \x00 \x7f"
    shown = printable(bad)
    assert shown.isascii() and shown.isprintable() and r"\x1b[31m" in shown and r"\ud800" in shown
    assert printable("tab\tline\nörtchen 漢字 👩‍🔬") == "tab\tline\nörtchen 漢字 👩‍🔬"
    assert "\x1b" not in reason(ValueError("name \x1b]0;title\x07"))
