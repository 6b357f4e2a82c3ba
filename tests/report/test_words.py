"""Words, numbers and places of a report."""

import pytest

from keylayers.report import words


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("top:30%", "the 30\u00a0% most critical layers"),
        ("not:bottom:25%", "all but the 25\u00a0% least critical layers"),
        ("random:30%:match=params", "random layers with as many parameters"),
        ("random:30%:seed=3:match=params", "random layers with as many parameters"),
        ("last:4", "the last 4 layers"),
        ("all", "all layers"),
        ("blocks:3,4", "blocks:3,4"),
        ("top:30%:<b>", "top:30%:<b>"),
    ],
)
def test_policies_in_words(policy, said):
    assert words.policy_words(policy) == said


def test_numbers():
    assert words.number(-0.04) == "−0.04" and words.figures(14.1) == "14.10"
    assert (
        words.with_half_width(1.0, 0.25) == "1.0000\u00a0±\u00a00.2500" and words.with_half_width(1.0, None) == "1.0000"
    )
    assert words.signed(-0.5) == "−0.5000" and words.share(0.416) == "41.6\u00a0%"
    assert words.seconds(None) == "–" and words.seconds(90) == "90.0 s" and words.seconds(300) == "5.0 min"
    assert words.seconds(7200) == "2.0 h" and words.mebibytes(2**20) == "1 MiB" and words.mebibytes(None) == "–"


def test_spans_of_blocks():
    assert words.spans([5, 0, 1, 2, 7, 8]) == "0–2, 5, 7–8" and words.spans([]) == "" and words.spans([3]) == "3"


def test_lists():
    assert [words.and_list(list("abc"[:n])) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert words.plural(1, "layer") == "1 layer" and words.plural(1200, "layer") == "1,200 layers"


def test_characters_that_would_hide_or_turn_text_are_replaced():
    assert words.printable("a\x00b\ud800c\u202ed\u2066e\x1b[31m") == "a�b�c�d�e�[31m"
    assert words.printable("ü × – 漢 \n") == "ü × – 漢 \n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["/usr/bin/keylayers", "demo", "--fresh", "--out", "a b"], ("keylayers demo --out 'a b'", True)),
        (["/x/keylayers/__main__.py", "demo"], ("keylayers demo", True)),
        (["mine.py", "$(rm -rf /)"], ("mine.py '$(rm -rf /)'", False)),
        ([], ("", False)),
    ],
)
def test_the_command_as_one_types_it(argv, line):
    assert words.command_line(argv) == line


def test_settings_as_lines():
    assert words.flat({"a": {"b": 1, "c": None}, "d": []}) == [("a.b", "1"), ("a.c", "–"), ("d", "[]")]
