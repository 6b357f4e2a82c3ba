"""Formats: recognises alpaca, sharegpt, messages, prompt/completion and plain text, and reads them into records."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from keylayers.data.files import BadRow, Row
from keylayers.data.records import Record, Records, Skipped, Turn
from keylayers.data.sources import source_kind, source_rows
from keylayers.errors import BadInput, UnknownName

PROMPTS = ("prompt", "question", "query", "instruction")
COMPLETIONS = ("completion", "answer", "response", "output", "chosen")
COLUMN_ROLES = ("prompt", "completion", "context", "system", "text", "messages")
"""What a column of one's own naming can be mapped to."""

_SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_LOOKED_AT = 100  # rows from which the format is told


@dataclass(frozen=True)
class Format:
    """One way to lay out a record."""

    layout: str
    """For messages: the keys it has."""
    matches: Callable[[Mapping[str, Any]], bool]
    """Whether a row has its keys."""
    read: Callable[[Mapping[str, Any], str], Record]
    """A record out of a row and its origin; raises BadInput with the reason."""


def load_records(
    source: str | Path,
    *,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    bad_share: float = 0.01,
    format: str = "auto",
) -> Records:
    """Reads a data source, whatever its format, leaving out at most a share `bad_share` of bad records.

    `source` is a file, a hub id (`owner/name` or `owner/name:configuration`) or `bundled:NAME`; `split` is for the last
    two. `columns` maps roles (`prompt`, `completion`, `context`, `system`, `text`, `messages`) to the source's own
    column names. `limit` stops after that many good records.

    Raises:
        BadInput: if the source cannot be read, fits no format, holds no good record or too many bad ones.
        UnknownName: for an unknown format, column or bundled set.
    """
    source, columns = str(source), dict(columns or {})
    if format != "auto" and format not in FORMATS:
        raise UnknownName("data format", format, ("auto", *FORMATS))
    for role in columns:
        if role not in COLUMN_ROLES:
            raise UnknownName("column role", role, COLUMN_ROLES)
    if limit is not None and limit < 1:
        raise BadInput(f"limit={limit}: expected at least 1 record")
    if not 0 <= bad_share <= 1:
        raise BadInput(f"bad_share={bad_share}: expected a share between 0 and 1")

    rows = iter(source_rows(source, split))
    head = list(islice(rows, _LOOKED_AT))
    if not head:
        raise BadInput(f"{source} holds no record; expected {_known_layouts()}")
    _check_columns(columns, head)
    if format == "auto":
        format = _format_for_columns(columns) or detect_format((row for _, row in head), columns, source)

    good, bad = list[Record](), list[Skipped]()
    for origin, row in chain(head, rows):
        try:
            good.append(FORMATS[format].read(_mapped(row, columns), origin))
        except BadInput as error:
            bad.append(Skipped(origin, str(error)))
        if len(good) == limit:
            break
    _refuse_if_bad(source, format, len(good), bad, bad_share)
    own_split = None if source_kind(source) == "file" else split or "train"
    return Records(tuple(good), source, format, own_split, tuple(bad))


def detect_format(rows: Iterable[object], columns: Mapping[str, str], source: str) -> str:
    """The name of the first format that one of the rows fits. Raises BadInput, listing the keys found."""
    keys = list[str]()
    for row in rows:
        try:
            fields = _mapped(row, columns)
        except BadInput:
            continue
        for name, known in FORMATS.items():
            if known.matches(fields):
                return name
        keys = keys or sorted(map(str, fields))
    shown = ", ".join(key if len(key) <= 40 else f"{key[:40]}..." for key in keys[:12])
    found = f"records with the keys {shown}" if keys else "neither objects nor texts"
    raise BadInput(
        f"{source} fits no known format: it holds {found}; expected {_known_layouts()}. Where the columns have other "
        f"names, map them: columns={{'prompt': 'my_question', 'completion': 'my_answer'}}"
    )


def _format_for_columns(columns: Mapping[str, str]) -> str | None:
    if "messages" in columns:
        return "messages"
    if "prompt" in columns or "completion" in columns:
        return "prompt-completion"
    return "text" if "text" in columns else None


def _check_columns(columns: Mapping[str, str], head: Iterable[Row]) -> None:
    names = {str(name) for _, row in head if isinstance(row, dict) for name in row}
    for column in columns.values():
        if column not in names:
            raise UnknownName("column", column, names)


def _mapped(row: object, columns: Mapping[str, str]) -> Mapping[str, Any]:
    if isinstance(row, BadRow):
        raise BadInput(row.reason)
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, dict):
        raise BadInput(f"the record is of type {type(row).__name__}, expected an object or a text")
    rivals = (PROMPTS if "prompt" in columns else ()) + (COMPLETIONS if "completion" in columns else ())
    others = {name: value for name, value in row.items() if name not in rivals} if rivals else row
    return {**others, **{role: row.get(column) for role, column in columns.items()}}


def _refuse_if_bad(source: str, format: str, good: int, bad: list[Skipped], bad_share: float) -> None:
    if good and len(bad) <= bad_share * (good + len(bad)):
        return
    share = len(bad) / (good + len(bad))
    allowed = f"allowed {bad_share:.3g}" if good else "at least one must be good"
    lines = [f"{source}: {len(bad)} of {good + len(bad)} records are bad as {format} (share {share:.3g}, {allowed}):"]
    lines += [f"  {skipped.origin}: {skipped.reason}" for skipped in bad[:5]]
    lines += [f"  ... and {len(bad) - 5} more"] if len(bad) > 5 else []
    remedy = f", or allow them to be left out with bad_share={min(1.0, share * 1.01):.3g}" if good else ""
    raise BadInput("\n".join([*lines, f"Mend or remove them, or name another format or columns{remedy}"]))


def _known_layouts() -> str:
    return "; ".join(f"{name} ({known.layout})" for name, known in FORMATS.items())


def _field(row: Mapping[str, Any], key: str, optional: bool = False) -> str:
    value = row.get(key)
    if value is None and not optional:
        raise BadInput(f"it has no {key!r}")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInput(f"{key!r} is of type {type(value).__name__}, expected text")
    if not optional and not value.strip():
        raise BadInput(f"{key!r} is empty")
    return value


def _system(row: Mapping[str, Any]) -> list[Turn]:
    content = _field(row, "system", optional=True)
    return [Turn("system", content)] if content.strip() else []


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part.strip())


def _read_alpaca(row: Mapping[str, Any], origin: str) -> Record:
    turns = _system(row)
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadInput("'history' is not a list of [question, answer] pairs")
    for question, answer in history:
        turns += [Turn("user", question), Turn("assistant", answer)]
    asked = _paragraphs(_field(row, "instruction", optional=True), _field(row, "input", optional=True))
    if not asked:
        raise BadInput("'instruction' is empty")
    return Record((*turns, Turn("user", asked), Turn("assistant", _field(row, "output"))), origin=origin)


def _read_pair(row: Mapping[str, Any], origin: str) -> Record:
    prompt, completion = _first_of(PROMPTS, row), _first_of(COMPLETIONS, row)
    if isinstance(row.get(prompt), list) and isinstance(row.get(completion), list):
        return _conversation([*row[prompt], *row[completion]], _system(row), origin)
    answer = _field(row, completion)
    asked = _paragraphs(_field(row, "context", optional=True), _field(row, prompt))
    return Record((*_system(row), Turn("user", asked), Turn("assistant", answer)), origin=origin)


def _first_of(names: tuple[str, ...], row: Mapping[str, Any]) -> str:
    return next((name for name in names if name in row), names[0])


def _read_sharegpt(row: Mapping[str, Any], origin: str) -> Record:
    return _conversation(_with_chosen(row, "conversations"), _system(row), origin)


def _read_messages(row: Mapping[str, Any], origin: str) -> Record:
    return _conversation(_with_chosen(row, "messages"), _system(row), origin)


def _with_chosen(row: Mapping[str, Any], key: str) -> object:
    """The conversation; in preference data, whose answers stand apart, it ends with the chosen one."""
    messages, chosen = row.get(key), row.get("chosen")
    return [*messages, chosen] if isinstance(messages, list) and isinstance(chosen, dict) else messages


def _conversation(messages: object, turns: list[Turn], origin: str) -> Record:
    if not isinstance(messages, list):
        raise BadInput(f"the messages are of type {type(messages).__name__}, expected a list")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise BadInput(f"message {number} is of type {type(message).__name__}, expected an object")
        role = message.get("role") or message.get("from")
        if not isinstance(role, str) or role not in _SPEAKERS:
            raise BadInput(f"message {number} has the unknown role {role!r}, expected one of {', '.join(_SPEAKERS)}")
        content = _content(message["content"] if "content" in message else message.get("value"))
        if role == "system" and isinstance(content, str) and not content.strip():
            continue
        try:
            turns.append(Turn(_SPEAKERS[role], content))
        except BadInput as error:
            raise BadInput(f"message {number}: {error}") from None
    while turns and turns[-1].role != "assistant":  # a question that nobody answered teaches nothing
        turns.pop()
    if not turns:
        raise BadInput("the conversation has no assistant turn, so there is nothing to learn from it")
    return Record(tuple(turns), origin=origin)


def _content(content: Any) -> Any:
    """The text of a message, whose content may be a list of text parts."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise BadInput("a message has a part that is not text")
    return "".join(part["text"] for part in content)


def _read_text(row: Mapping[str, Any], origin: str) -> Record:
    return Record(text=_field(row, "text"), origin=origin)


FORMATS: dict[str, Format] = {
    "messages": Format("messages: [{role, content}]", lambda row: "messages" in row, _read_messages),
    "sharegpt": Format("conversations: [{from, value}]", lambda row: "conversations" in row, _read_sharegpt),
    "alpaca": Format("instruction, input, output", lambda row: "instruction" in row and "output" in row, _read_alpaca),
    "prompt-completion": Format(
        f"{' | '.join(PROMPTS)} and {' | '.join(COMPLETIONS)}",
        lambda row: any(name in row for name in PROMPTS) and any(name in row for name in COMPLETIONS),
        _read_pair,
    ),
    "text": Format("text, or a list of texts", lambda row: "text" in row, _read_text),
}
"""Every format by name, the most telling first: the first that fits is taken."""
