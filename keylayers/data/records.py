"""Records: what every data format becomes, a conversation or a text, each knowing where it came from."""

import hashlib
import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from keylayers.errors import BadInput

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise BadInput(f"unknown role {self.role!r}, expected one of {', '.join(ROLES)}")
        _require_text(f"content of the {self.role} turn", self.content)


@dataclass(frozen=True)
class Record:
    """A conversation that ends with an answer, or a plain text; equal when their content is.

    Raises:
        BadInput: if it holds neither or both, if a text is empty or not valid Unicode, or if no assistant turn ends it.
    """

    turns: tuple[Turn, ...] = ()
    text: str | None = None
    origin: str = field(default="", compare=False)
    """Where it was read: `file:line`, `file[index]` or `bundled:name/split[index]`."""

    def __post_init__(self) -> None:
        if bool(self.turns) == (self.text is not None):
            raise BadInput("a record holds either turns or a text")
        if self.text is not None:
            _require_text("text", self.text)
        elif self.turns[-1].role != "assistant":
            raise BadInput("the conversation has no assistant turn at its end, so there is nothing to learn from it")

    @property
    def prompt(self) -> str:
        """All turns before the last answer, joined by blank lines; empty for a plain text."""
        return "\n\n".join(turn.content for turn in self.turns[:-1])

    @property
    def completion(self) -> str:
        """The last answer, or the whole of a plain text."""
        return self.turns[-1].content if self.text is None else self.text

    @property
    def key(self) -> str:
        """What makes two records duplicates: the first user turn (else the text), without case and spacing."""
        asked = next((turn.content for turn in self.turns if turn.role == "user"), self.completion)
        return " ".join(unicodedata.normalize("NFKC", asked).casefold().split())

    @property
    def canonical(self) -> str:
        """The content as one line of JSON; the same for every file format."""
        content = {"text": self.text} if self.text is not None else {"turns": [[t.role, t.content] for t in self.turns]}
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
            "sha256": self.sha256,
        }


def _require_text(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise BadInput(f"{what} is of type {type(value).__name__}, expected text")
    if not value.strip():
        raise BadInput(f"{what} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON lets half a surrogate pair through; no tokenizer does
            raise BadInput(f"{what} is not valid Unicode: it holds half of a surrogate pair") from None
