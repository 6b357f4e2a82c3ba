"""Text that a terminal shows and does not obey."""

import re

_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline: escape sequences begin with one
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reverse the order in which text is shown
    r"\u2028\u2029\ufeff\ufff9-\ufffb"
    r"\U000e0000-\U000e007f"  # tags, which are invisible
    r"\ud800-\udfff]"  # halves of a pair, which no encoding can write
)


def printable(text: str) -> str:
    """The text with every character that a terminal would obey, or could not encode, spelled as Python escapes it.

    Tabs and newlines stay.
    """
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)
