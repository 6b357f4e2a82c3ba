"""The policy language: short texts such as `top:30%` or `random:30%:seed=3:match=params`, parsed and checked."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from keylayers.errors import BadSelection, UnknownName

Needs = Literal["layers", "order", "magnitudes"]


@dataclass(frozen=True)
class Amount:
    """How many: an exact share of something (`30%`), or a count (`12`)."""

    text: str
    share: Fraction | None = None
    count: int = 0

    @classmethod
    def of_share(cls, fraction: float) -> "Amount":
        """The amount of a decimal fraction such as 0.75, exactly as it is written (no binary rounding)."""
        exact = Fraction(repr(float(fraction)))
        return cls(f"{float(100 * exact):g}%", exact)

    def of(self, total: int, what: str = "layers") -> int:
        """The count for that total: round() of the exact share, at least 1. Raises BadSelection if there are fewer."""
        if self.share is not None:
            return max(1, round(self.share * total))
        if self.count > total:
            raise BadSelection(
                f"{self.text} {what} asked for, but there are only {total}; ask for fewer, or a share: 30%"
            )
        return self.count

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class PolicySpec:
    """A parsed policy; `str()` gives its canonical text, which parses to the same."""

    name: str
    argument: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    negated: bool = False

    @property
    def needs(self) -> Needs:
        """What it must be given: plain layers, an order of them, or scores whose size means something."""
        by = self.options.get("by", "score")
        if self.name == "random":
            return "order" if "match" in self.options else "layers"
        if self.name == "params":
            return {"density": "magnitudes", "kinds": "magnitudes", "first": "layers", "last": "layers"}.get(
                by, "order"
            )  # type: ignore[return-value]
        return GRAMMAR[self.name].needs

    def __str__(self) -> str:
        argument = () if self.argument is None else (_written(self.argument),)
        options = (f"{key}={value}" for key, value in self.options.items())
        return ":".join([*(["not"] if self.negated else []), self.name, *argument, *options])


def share(text: str) -> Fraction:
    """An exact share from `30%`, in (0, 1]. Raises ValueError otherwise."""
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)%", text)
    if not found:
        raise ValueError("is not a share such as 30%")
    value = Fraction(found[1]) / 100
    if not 0 < value <= 1:
        raise ValueError("is not between 0% (exclusive) and 100%")
    return value


def amount(text: str) -> Amount:
    """A share `30%` or a count `12`. Raises ValueError otherwise."""
    if re.fullmatch(r"[0-9]{1,9}", text):
        if int(text) == 0:
            raise ValueError("is zero, which chooses nothing")
        return Amount(str(int(text)), count=int(text))
    if not text.endswith("%"):
        raise ValueError("is neither a share such as 30% nor a count such as 12")
    return Amount(text, share=share(text))


def whole(text: str) -> int:
    """A whole number >= 0. Raises ValueError otherwise."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise ValueError("is not a whole number")
    return int(text)


def span(text: str) -> range:
    """The blocks of a span `4-8`, both ends included. Raises ValueError otherwise."""
    low, dash, high = text.partition("-")
    if not dash or whole(low) > whole(high):
        raise ValueError("is not a span of blocks such as 4-8")
    return range(whole(low), whole(high) + 1)


def blocks(text: str) -> tuple[int, ...]:
    """Block numbers, ascending, from `3,4,8` or `3-5,8`. Raises ValueError otherwise."""
    found: set[int] = set()
    for part in text.split(","):
        numbers = span(part) if "-" in part else range(whole(part), whole(part) + 1)
        if len(numbers) > 100_000:
            raise ValueError("spans more blocks than any model has")
        found.update(numbers)
    return tuple(sorted(found))


def threshold(text: str) -> float:
    """A finite number. Raises ValueError otherwise."""
    try:
        value = float(text)
    except ValueError:
        raise ValueError("is not a number") from None
    if not math.isfinite(value):
        raise ValueError("is not a finite number")
    return value


def one_of(*known: str) -> Callable[[str], str]:
    """A parser that accepts these words only."""

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"is not one of {', '.join(known)}")
        return text

    return read


def share_text(text: str) -> str:
    """The text of a share, checked; options keep their text so that a policy prints as it was written."""
    share(text)
    return text


@dataclass(frozen=True)
class Grammar:
    """How one policy is written and what it needs."""

    example: str
    argument: Callable[[str], Any] | None = None
    options: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    needs: Needs = "layers"
    optional: bool = False
    """Whether the argument may be left out."""


PARAMS_ORDERS = ("score", "density", "kinds", "reverse", "first", "last")
SIZES = ("weights", "lora")
"""What counts as a layer's parameters: its own, or those LoRA of one rank adds."""
PARAMS_OPTIONS = {"by": one_of(*PARAMS_ORDERS), "of": one_of(*SIZES)}

GRAMMAR: dict[str, Grammar] = {
    "top": Grammar("top:30%", amount, needs="order"),
    "bottom": Grammar("bottom:25%", amount, needs="order"),
    "first": Grammar("first:30%", amount),
    "last": Grammar("last:30%", amount),
    "all": Grammar("all"),
    "random": Grammar(
        "random:30%:seed=3",
        amount,
        {"seed": whole, "match": one_of("kind", "params"), "params": share_text, "of": one_of(*SIZES)},
        optional=True,
    ),
    "params": Grammar("params:10%", lambda text: Amount(text, share(text)), PARAMS_OPTIONS),
    "contiguous": Grammar("contiguous:6", amount, needs="magnitudes"),
    "ends": Grammar("ends:4-8", span, optional=True),
    "blocks": Grammar("blocks:3,4,8", blocks),
    "above": Grammar("above:0", threshold, needs="magnitudes"),
    "suffix": Grammar("suffix:30%", amount, {"keep": share_text}, needs="magnitudes"),
}


def parse(policy: str) -> PolicySpec:
    """The policy of a text: `[not:]NAME[:ARGUMENT][:option=value]...`.

    Raises:
        UnknownName: for an unknown policy or option, with the nearest names.
        BadSelection: for a missing, surplus or unreadable argument, with an example of right syntax.
    """
    if not isinstance(policy, str):
        raise BadSelection(f"a policy is a text such as 'top:30%', got {policy!r}")
    parts = policy.strip().split(":")
    negated = len(parts) > 1 and parts[0] == "not"
    name, *rest = parts[negated:]
    if name not in GRAMMAR:
        raise UnknownName("policy", name, GRAMMAR)
    grammar = GRAMMAR[name]
    written = [rest.pop(0)] if rest and "=" not in rest[0] else []
    if written and grammar.argument is None:
        raise BadSelection(f"policy {policy!r}: {name!r} takes no {written[0]!r}; write '{grammar.example}'")
    if not written and grammar.argument is not None and not grammar.optional:
        raise BadSelection(f"policy {policy!r} does not say how much; for example '{grammar.example}'")
    argument = _read(policy, grammar, grammar.argument, written[0]) if written and grammar.argument else None
    options: dict[str, Any] = {}
    for part in rest:
        key, sign, value = part.partition("=")
        if not sign:
            raise BadSelection(f"policy {policy!r}: {part!r} is not option=value; for example '{grammar.example}'")
        if key not in grammar.options:
            raise UnknownName(f"option of policy {name!r}", key, grammar.options)
        if key in options:
            raise BadSelection(f"policy {policy!r} gives the option {key!r} twice; give it once")
        options[key] = _read(policy, grammar, grammar.options[key], value)
    if name == "random":
        _check_random(policy, argument, options)
    return PolicySpec(name, argument, options, negated)


def _check_random(policy: str, argument: Amount | None, options: dict[str, Any]) -> None:
    if (argument is None) == ("params" not in options):
        raise BadSelection(
            f"policy {policy!r} must say either how many layers or which share of the parameters: "
            "'random:30%:seed=3' or 'random:params=10%:seed=3'"
        )
    if "params" in options and "match" in options:
        raise BadSelection(f"policy {policy!r}: a parameter share matches nothing else; leave out 'match'")
    if "of" in options and "params" not in options and options.get("match") != "params":
        raise BadSelection(f"policy {policy!r} counts layers, not parameters; leave out 'of', or add match=params")
    options.setdefault("seed", 0)


def _read(policy: str, grammar: Grammar, reader: Callable[[str], Any], text: str) -> Any:
    try:
        return reader(text)
    except ValueError as problem:
        raise BadSelection(f"policy {policy!r}: {text!r} {problem}; for example '{grammar.example}'") from None


def _written(argument: Any) -> str:
    """The argument as the policy language spells it."""
    if isinstance(argument, tuple):
        return ",".join(map(str, argument))
    if isinstance(argument, range):
        return f"{argument[0]}-{argument[-1]}"
    return f"{argument:g}" if isinstance(argument, float) and float(f"{argument:g}") == argument else str(argument)
