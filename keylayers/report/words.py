"""Numbers, policies and places in plain words."""

import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MINUS = "−"
NO_BREAK, HYPHEN = "\u00a0", "\u2011"  # both keep a line from breaking there
DIRECTION = ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")  # would reorder the text around them

POLICIES = (
    (r"top:([\d.]+)%", "the {0} % most critical layers"),
    (r"top:(\d+)", "the {0} most critical layers"),
    (r"bottom:([\d.]+)%", "the {0} % least critical layers"),
    (r"bottom:(\d+)", "the {0} least critical layers"),
    (r"not:bottom:([\d.]+)%", "all but the {0} % least critical layers"),
    (r"(first|last):([\d.]+)%", "the {0} {1} % of the layers"),
    (r"(first|last):(\d+)", "the {0} {1} layers"),
    (r"random:([\d.]+)%(?::seed=\d+)?", "random layers, {0} % of them"),
    (r"random:([\d.]+)%(?::seed=\d+)?:match=params(?::seed=\d+)?", "random layers with as many parameters"),
    (r"random:([\d.]+)%(?::seed=\d+)?:match=kind(?::seed=\d+)?", "random layers of the same kinds"),
    (r"params:([\d.]+)%", "the most critical layers that fit in {0} % of the parameters"),
    (r"all", "all layers"),
)


def policy_words(policy: str) -> str:
    """What a policy chooses, in words; the policy itself where there are none for it."""
    for pattern, words in POLICIES:
        if found := re.fullmatch(pattern, policy):
            return words.format(*found.groups()).replace(" %", f"{NO_BREAK}%")
    return policy


def number(value: float, digits: int = 4) -> str:
    """Four significant digits, a real minus sign."""
    return f"{value:.{digits}g}".replace("-", MINUS)


def figures(value: float) -> str:
    """Exactly four significant digits: 14.10, where `number` gives 14.1."""
    return f"{value:#.4g}".replace("-", MINUS)


def loss(value: float) -> str:
    """A loss in nats per token, with four decimals as in the tables of the command line."""
    return f"{value:.4f}".replace("-", MINUS)


def signed(value: float) -> str:
    """A difference of losses, with its sign."""
    return f"{value:+.4f}".replace("-", MINUS)


def with_half_width(estimate: float, half: float | None, *, sign: bool = False) -> str:
    """An estimate and the half width of its interval, where there is one."""
    text = signed(estimate) if sign else loss(estimate)
    return text if half is None else f"{text}{NO_BREAK}±{NO_BREAK}{half:.4f}"


def share(value: float) -> str:
    """A share of 1 in percent."""
    return f"{value:.1%}".replace("%", f"{NO_BREAK}%").replace("-", MINUS)


def whole(value: float) -> str:
    """A count with thousands apart."""
    return f"{value:,.0f}"


def seconds(value: Any) -> str:
    """A time in seconds, minutes or hours; a dash where it is not known."""
    if not isinstance(value, int | float):
        return "–"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def mebibytes(value: int | None) -> str:
    """Memory in MiB; a dash where it is not known."""
    return "–" if value is None else f"{value / 2**20:,.0f} MiB"


def spans(numbers: Iterable[int]) -> str:
    """Block numbers with runs joined: 0–3, 5, 7–11."""
    runs: list[list[int]] = []
    for one in sorted(numbers):
        if runs and one == runs[-1][1] + 1:
            runs[-1][1] = one
        else:
            runs.append([one, one])
    return ", ".join(f"{low}" if low == high else f"{low}–{high}" for low, high in runs)


def and_list(items: Sequence[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def plural(count: int, one: str, more: str | None = None) -> str:
    """1 layer, 2 layers."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def printable(value: Any) -> str:
    """Any value as text that a page and a picture can show: no control, half-pair or direction-changing characters."""
    text = value if isinstance(value, str) else str(value)
    return "".join("\ufffd" if _hidden(character) else character for character in text)


def command_line(argv: Sequence[str]) -> tuple[str, bool]:
    """The command of a session as one types it, and whether it really is one of this program."""
    words = [str(word) for word in argv]
    program = Path(words[0]) if words else Path()
    ours = program.name == "keylayers" or program.parts[-2:] == ("keylayers", "__main__.py")
    return shlex.join(["keylayers", *(word for word in words[1:] if word != "--fresh")] if ours else words), ours


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of dotted name and value."""
    lines: list[tuple[str, str]] = []
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            lines += flat(value, f"{prefix}{key}.")
        else:
            lines.append((f"{prefix}{key}", "–" if value is None else str(value)))
    return lines


def _hidden(character: str) -> bool:
    kind = unicodedata.category(character)
    return (kind in ("Cc", "Cs") and character not in "\n\t") or unicodedata.bidirectional(character) in DIRECTION
