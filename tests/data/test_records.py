import pytest

from keylayers.data.records import Record, Records, Turn
from keylayers.errors import BadInput

ASKED = (Turn("system", "Be brief."), Turn("user", "Why?"), Turn("assistant", "Because."))


def test_prompt_and_completion_are_what_precedes_and_what_is_the_last_answer() -> None:
    record = Record(ASKED)
    assert (record.prompt, record.completion) == ("Be brief.\n\nWhy?", "Because.")
    assert (Record(text="Once.").prompt, Record(text="Once.").completion) == ("", "Once.")


def test_equality_is_of_content_not_of_origin() -> None:
    assert Record(ASKED, origin="a:1") == Record(ASKED, origin="b:2") != Record(ASKED[1:])


def test_key_forgets_case_spacing_width_and_answer() -> None:
    one = Record((Turn("user", "What  is\nＫ?"), Turn("assistant", "a")))
    other = Record((Turn("system", "s"), Turn("user", " what is K?"), Turn("assistant", "b")))
    assert one.key == other.key == "what is k?"


@pytest.mark.parametrize(
    ("turns", "text", "reason"),
    [
        ((), None, "either turns or a text"),
        (ASKED, "both", "either turns or a text"),
        ((), "  \n", "text is empty"),
        ((), "\ud83d", "surrogate"),
        ((), 3, "type int"),
        (ASKED[:2], None, "no assistant turn"),
    ],
)
def test_impossible_records_are_refused(turns: tuple[Turn, ...], text: str | None, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        Record(turns, text)


@pytest.mark.parametrize(("role", "content", "reason"), [("wizard", "x", "'wizard'"), ("user", " ", "is empty")])
def test_impossible_turns_are_refused(role: str, content: str, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        Turn(role, content)


def test_digest_is_of_content_and_order_alone() -> None:
    one, two = Record(ASKED, origin="a"), Record(text="t", origin="b")
    same = Records((Record(ASKED), Record(text="t")), "elsewhere", "csv")
    assert Records((one, two), "here").sha256 == same.sha256 != Records((two, one), "here").sha256
    assert len(same.sha256) == 64 and same.provenance["sha256"] == same.sha256
    assert [record.origin for record in Records((one, two), "here")] == ["a", "b"]
