"""Whether something that should not know a secret holds it: a search through what it can reach."""

from collections.abc import Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor

MOST = 1_000_000
"""Objects looked at, far more than a defence holds."""

_CALLS = ("__call__", "forward")  # methods of an object's class that run when it is called


def reaches(value: object, secrets: Iterable[object]) -> bool:
    """Whether a secret, or its equal, lies in a value: in closures, defaults, bound objects, attributes, containers and
    the globals that its functions name, an object's `__call__` and `forward` among them. Numbers and texts do not
    count: the target class alone tells nothing.

    It is a guard against mistakes, not against malice: a secret written down as numbers is not found.
    """
    hidden = [one for one in secrets if not isinstance(one, int | float | str | bytes | type(None))]
    left, seen = [value], set[int]()
    while left and len(seen) < MOST:
        one = left.pop()
        if id(one) in seen or isinstance(one, Tensor | type | int | float | str | bytes | type(None)):
            continue
        seen.add(id(one))
        if any(_same(one, secret) for secret in hidden):
            return True
        left += _within(one)
    return False


def _same(one: object, secret: object) -> bool:
    if one is secret:
        return True
    if type(one) is not type(secret) or not hasattr(one, "__dataclass_fields__"):
        return False
    try:
        return bool(one == secret)
    except Exception:  # fields without a truth value: then only the object itself counts
        return False


def _within(one: object) -> Iterator[object]:
    if isinstance(one, FunctionType):
        for cell in one.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
        yield from (*(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values())
        named = (one.__globals__.get(name) for name in _names(one.__code__))
        yield from (held for held in named if _own(held, one.__globals__))
    elif isinstance(one, MethodType):
        yield from (one.__func__, one.__self__)
    elif isinstance(one, partial):
        yield from (one.func, *one.args, *one.keywords.values())
    elif isinstance(one, dict):
        yield from one.values()
    elif isinstance(one, list | tuple | set | frozenset):
        yield from one
    elif not isinstance(one, CodeType):
        methods = (getattr(type(one), name, None) for name in _CALLS)
        yield from (method for method in methods if isinstance(method, FunctionType))
        yield from _attributes(one)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _own(value: Any, where: dict[str, Any]) -> bool:
    """A value, or a function of the same file; not a library's, through which everything could be reached."""
    return not callable(value) or hasattr(value, "__dataclass_fields__") or getattr(value, "__globals__", None) is where


def _attributes(one: object) -> Iterator[object]:
    held = getattr(one, "__dict__", None)
    if isinstance(held, dict) and type(one).__name__ != "module":
        yield from held.values()
    for kind in type(one).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if hasattr(one, name):
                yield getattr(one, name)
