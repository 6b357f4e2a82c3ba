"""Settings that are checked where they are made: numbers whole or finite and in their bounds, words that are known."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from keylayers.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MOST = 10**9
Count = Annotated[int, Ge(1), Le(MOST)]
"""How many, at least one."""
Natural = Annotated[int, Ge(0), Le(MOST)]
"""How many, or none."""
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""What every generator of random numbers takes."""
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Inside = Annotated[float, Gt(0), Lt(1)]
"""A share that is neither nothing nor all."""
Share = Annotated[float, Ge(0), Le(1)]

KINDS = {int: "a whole number", float: "a number", bool: "true or false", NoneType: ""}
BOUNDS = ((Ge, "ge", "at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))


@dataclass(frozen=True)
class Settings:
    """A base of frozen dataclasses whose fields are checked against their annotations whenever one is made.

    Texts, as a command line gives them, become what the annotation says. Fields of other types than numbers, switches,
    words of a `Literal` and lists of these are taken as they are.

    Raises:
        UnknownName: for a word that is none of a `Literal`'s. BadInput: for a value of another type, one out of bounds,
            or a number that is not finite.
    """

    def __post_init__(self) -> None:
        for name, rule in _rules(type(self)).items():  # type: ignore[arg-type]  # every class is hashable
            object.__setattr__(self, name, rule.taken(getattr(self, name), functools.partial(self.spelled, name)))

    def spelled(self, name: str, value: object = None) -> str:
        """What a message calls a setting that was given that value; without one, what its values are called."""
        return f"value of `{name}`" if value is None else f"`{name}={value}`"


@dataclass(frozen=True)
class _Rule:
    """What a field may hold."""

    hint: Any
    adapter: "TypeAdapter[Any]"

    def taken(self, value: Any, spelled: Callable[..., str]) -> Any:
        """The value as the field's type. Raises as `Settings` does."""
        kinds = {_plain(arm) for arm in _arms(self.hint)}
        if value in ("none", "null") and NoneType in kinds:
            return None
        try:
            if isinstance(value, bool) and bool not in kinds:
                raise ValueError  # pydantic takes True for 1
            found = self.adapter.validate_python(value)
            numbers = [one for one in (found if isinstance(found, tuple) else [found]) if isinstance(one, float)]
            if not all(map(math.isfinite, numbers)):
                raise ValueError
        except ValueError as error:  # pydantic's errors are such, too
            if get_origin(self.hint) is Literal:
                raise UnknownName(spelled(), str(value), map(str, get_args(self.hint))) from error
            raise BadInput(f"{spelled(str(value))}: expected {_expected(self.hint, value)}.") from error
        return value if isinstance(value, int) else found  # 1 stays 1 among broken numbers: runs know theirs by it


@functools.cache
def _rules(settings: type[Settings]) -> dict[str, _Rule]:
    from pydantic import TypeAdapter

    hints = get_type_hints(settings, include_extras=True)
    known = {one.name: hints[one.name] for one in fields(settings) if _is_checked(hints[one.name])}
    return {name: _Rule(hint, TypeAdapter(hint)) for name, hint in known.items()}


def _arms(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one there is."""
    if get_origin(hint) in (Literal, Annotated, tuple, None):
        return (hint,)
    return get_args(hint)


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_checked(hint: Any) -> bool:
    """Whether it is made of numbers and words alone."""
    if get_origin(_plain(hint)) is tuple:
        return all(one is ... or _is_checked(one) for one in get_args(_plain(hint)))
    return all(_plain(arm) in KINDS or get_origin(arm) is Literal for arm in _arms(hint))


def _expected(hint: Any, value: object) -> str:
    return " or ".join(_described(arm, value) for arm in _arms(hint) if arm is not NoneType)


def _described(hint: Any, value: object) -> str:
    """What one arm of an annotation takes; that there is a most is said to who gave more."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(_plain(hint)) is tuple:
        each = next(one for one in get_args(_plain(hint)) if one is not ...)
        return f"a list, each {_described(each, value)}"
    bounds = [
        f"{word} {getattr(one, name):,}"
        for kind, name, word in BOUNDS
        for one in getattr(hint, "__metadata__", ())
        if isinstance(one, kind) and (getattr(one, name) != MOST or (isinstance(value, int) and value > MOST))
    ]
    joined = " and ".join(bounds)
    return " ".join([KINDS[_plain(hint)], f"of {joined}" if joined.startswith("at") else joined]).strip()
