"""What the package's texts advise, read from its source; and what of the command line's own code a command can run."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import keylayers

ROOT = Path(keylayers.__file__).parent


@dataclass(frozen=True)
class Text:
    """A string of the source that is no docstring; what is put into it stands in braces."""

    place: tuple[str, str]
    """The module, and the outermost function or class it stands in: an empty name outside of them."""
    line: int
    words: str
    said: bool
    """Whether it stands in a `raise`, a note or what a refusal is made of."""

    def __str__(self) -> str:
        return f"{self.place[0]}:{self.line}: {self.words}"


@dataclass(frozen=True)
class Source:
    """One module."""

    name: str
    tree: ast.Module

    @cached_property
    def parts(self) -> Mapping[str, ast.AST]:
        """Its functions and classes by name."""
        return {top.name: top for top in self.tree.body if isinstance(top, ast.FunctionDef | ast.ClassDef)}

    def texts(self) -> Iterator[Text]:
        """All of its strings but docstrings."""
        for top in self.tree.body:
            yield from _texts((self.name, getattr(top, "name", "")), top, False)


def _texts(place: tuple[str, str], node: ast.AST, said: bool) -> Iterator[Text]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
    said = (
        said or isinstance(node, ast.Raise) or called in ("note", "BadInput", "BadScores", "BadSelection", "Diverged")
    )
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield Text(place, node.lineno, node.value, said)
    elif isinstance(node, ast.JoinedStr):
        parts = [one.value if isinstance(one, ast.Constant) else "{}" for one in node.values]
        yield Text(place, node.lineno, "".join(map(str, parts)), said)
        for one in node.values:
            if isinstance(one, ast.FormattedValue):
                yield from _texts(place, one.value, said)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _texts(place, child, said)


def sources() -> dict[str, Source]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        found[name] = Source(name, ast.parse(path.read_text(encoding="utf-8")))
    return found


def run_by(command: tuple[str, str], known: Mapping[str, Source]) -> set[tuple[str, str]]:
    """Functions and classes of the command line's modules that a command's own function comes to, names followed."""
    reached, waiting = set[tuple[str, str]](), [command]
    while waiting:
        place = waiting.pop()
        source = known[place[0]]
        if place in reached or place[1] not in source.parts:
            continue
        reached.add(place)
        node = source.parts[place[1]]
        named = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        waiting += [(place[0], name) for name in named & source.parts.keys()]
        for one in (*source.tree.body, *ast.walk(node)):
            if isinstance(one, ast.ImportFrom) and one.module in known and one.module.startswith("keylayers.cli."):
                waiting += [(one.module, alias.name) for alias in one.names if (alias.asname or alias.name) in named]
    return reached
