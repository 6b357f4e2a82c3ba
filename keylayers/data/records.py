"""Records: what every data format becomes, a conversation or a text, each knowing where it came from."""

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from keylayers.errors import BadInput

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    """`system`, `user`, `assistant`, or `tool` for what a called function gave back."""
    content: str
    calls: tuple[str, ...] = ()
    """Functions an assistant calls, each as JSON with a name and its arguments; the content may then be empty."""
    learnt: bool = True
    """Of an assistant's turn: whether the model is to learn it, or is only given it."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise BadInput(f"unknown role {self.role!r}, expected one of {', '.join(ROLES)}")
        if self.calls and self.role != "assistant":
            raise BadInput(f"a {self.role} turn calls a function; only the assistant can")
        _require_text(f"content of the {self.role} turn", self.content, may_be_empty=bool(self.calls))

    @property
    def text(self) -> str:
        """The content, and after it each call in the notation that most open models are trained on."""
        calls = [f"<tool_call>\n{call}\n</tool_call>" for call in self.calls]
        return "\n".join([*([self.content] if self.content.strip() else []), *calls])


@dataclass(frozen=True)
class Record:
    """A conversation that ends with an answer, or a plain text; equal when their content is.

    Raises:
        BadInput: if it holds neither or both, if a text is empty or not valid Unicode, or if no assistant turn ends it.
    """

    turns: tuple[Turn, ...] = ()
    text: str | None = None
    tools: str = ""
    """The functions that may be called, as a JSON list; empty where there are none."""
    origin: str = field(default="", compare=False)
    """Where it was read: `file:line`, `file[index]` or `bundled:name/split[index]`."""

    def __post_init__(self) -> None:
        if bool(self.turns) == (self.text is not None):
            raise BadInput("a record holds either turns or a text")
        if self.text is not None:
            _require_text("text", self.text)
        elif self.turns[-1].role != "assistant":
            raise BadInput("the conversation has no assistant turn at its end, so there is nothing to learn from it")
        elif not any(turn.learnt for turn in self.turns if turn.role == "assistant"):
            raise BadInput("every answer of the conversation is marked as not to be learnt")

    @property
    def prompt(self) -> str:
        """All turns before the last answer, joined by blank lines; empty for a plain text."""
        return "\n\n".join(turn.text for turn in self.turns[:-1])

    @property
    def completion(self) -> str:
        """The last answer, or the whole of a plain text."""
        return self.turns[-1].text if self.text is None else self.text

    @property
    def key(self) -> str:
        """What makes two records duplicates: the first user turn (else the text), without case and spacing."""
        return _plainly(next((turn.content for turn in self.turns if turn.role == "user"), self.completion))

    @property
    def whole_key(self) -> str:
        """All that is given before the last answer (else the text), without case and spacing."""
        return _plainly(self.prompt if len(self.turns) > 1 else self.completion)

    @property
    def canonical(self) -> str:
        """The content as one line of JSON; the same for every file format."""
        content: dict[str, object] = {"text": self.text}
        if self.text is None:
            content = {"turns": [_canonical(turn) for turn in self.turns]}
        if self.tools:
            content["tools"] = self.tools
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Skipped:
    """A bad record that was left out."""

    origin: str
    reason: str


@dataclass(frozen=True)
class Records:
    """The good records of one source, in order, and what was left out."""

    records: tuple[Record, ...]
    source: str
    """As the user typed it: a file, a hub id or `bundled:NAME`."""
    format: str = ""
    """The format they were read as: a name of `keylayers.data.formats.FORMATS`."""
    split: str | None = None
    skipped: tuple[Skipped, ...] = ()
    unwanted: int = 0
    """Records left out because they say of themselves that they are bad answers (KTO's `label: false`)."""
    parted_by: Literal["key", "whole_key"] = "key"
    """By which of a record's keys the source was split: by the whole prompt where all records open alike."""

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    @cached_property
    def sha256(self) -> str:
        """Digest of the content in its order; the same whether it was stored as JSON, CSV or parquet."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(record.canonical.encode() + b"\n")
        return digest.hexdigest()

    @property
    def provenance(self) -> dict[str, str | int | None]:
        """What a score file or run folder keeps about its data."""
        return {
            "source": self.source,
            "split": self.split,
            "format": self.format,
            "records": len(self),
            "skipped": len(self.skipped),
            "unwanted": self.unwanted,
            "sha256": self.sha256,
        }


def _canonical(turn: Turn) -> list[object]:
    """The turn as JSON; what most turns do not have is left out, so that digests of plain data stay what they were."""
    more = {**({"calls": list(turn.calls)} if turn.calls else {}), **({} if turn.learnt else {"learnt": False})}
    return [turn.role, turn.content, *([more] if more else [])]


def _plainly(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _require_text(what: str, value: object, may_be_empty: bool = False) -> None:
    if not isinstance(value, str):
        raise BadInput(f"{what} is of type {type(value).__name__}, expected text")
    if not value.strip() and not may_be_empty:
        raise BadInput(f"{what} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON lets half a surrogate pair through; no tokenizer does
            raise BadInput(f"{what} is not valid Unicode: it holds half of a surrogate pair") from None
