"""Layouts: how each format's row becomes a record."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from keylayers.data.conversations import present, tools_of, turns_of, without_end
from keylayers.data.records import Record, Turn
from keylayers.errors import BadInput

PROMPTS = ("prompt", "question", "query", "instruction", "input", "inputs")
COMPLETIONS = ("completion", "answer", "response", "output", "chosen", "target", "targets")
CONVERSATIONS = ("conversations", "conversation")
VERDICTS = ("label", "kto_tag")
"""Columns in which KTO's data says whether an answer is a good one."""

_SPOKEN = re.compile(r"\n\n(Human|Assistant):")


class Unwanted(BadInput):
    """A record that says of itself that its answer is a bad one."""


def read_messages(row: Mapping[str, Any], origin: str) -> Record:
    """A conversation under `messages`."""
    return _spoken(row, "messages", origin)


def read_sharegpt(row: Mapping[str, Any], origin: str) -> Record:
    """A conversation under `conversations`."""
    return _spoken(row, _first_of(CONVERSATIONS, row), origin)


def _spoken(row: Mapping[str, Any], key: str, origin: str) -> Record:
    """The conversation; in preference data, whose answers stand apart, it ends with the chosen one."""
    turns, chosen = turns_of(row.get(key)), row.get("chosen")
    if isinstance(chosen, dict):
        turns = [*_given(turns), *turns_of([chosen])]
    return _record(row, turns, origin)


def read_alpaca(row: Mapping[str, Any], origin: str) -> Record:
    """Instruction, input and output, with the earlier exchanges under `history`."""
    turns = list[Turn]()
    history = row.get("history") if present(row.get("history")) else []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadInput("'history' is not a list of [question, answer] pairs")
    for question, answer in history:
        turns += [Turn("user", question), Turn("assistant", answer)]
    asked = _paragraphs(_field(row, "instruction", optional=True), _field(row, "input", optional=True))
    if not asked:
        raise BadInput("'instruction' is empty")
    turns += [Turn("user", asked), Turn("assistant", _field(row, "output"))]
    return _record(row, turns, origin)


def read_pair(row: Mapping[str, Any], origin: str) -> Record:
    """A prompt and its completion, each a text or a conversation; of preference pairs the chosen completion."""
    prompt, completion = _first_of(PROMPTS, row), _first_of(COMPLETIONS, row)
    given, answer = _listed(row.get(prompt)), _listed(row.get(completion))
    if isinstance(answer, list) and any(isinstance(message, dict) for message in answer):
        answered = turns_of(answer)
        if any(turn.role in ("user", "system") for turn in answered):  # the prompt is told again
            return _record(row, _beyond(answered, row.get("rejected")), origin)
        asked = turns_of(given) if isinstance(given, list) else [Turn("user", _asked(row, prompt))]
        return _record(row, [*_given(asked), *answered], origin)
    if isinstance(given, list):
        asked = turns_of(given)
        return _record(row, [*_given(asked), Turn("assistant", _field(row, completion))], origin)
    turns = [Turn("user", _asked(row, prompt)), Turn("assistant", _field(row, completion))]
    return _record(row, turns, origin)


def read_preference(row: Mapping[str, Any], origin: str) -> Record:
    """The chosen one of two conversations or texts that begin alike; where they part, the answer begins."""
    chosen, rejected = _listed(row.get("chosen")), row.get("rejected")
    if isinstance(chosen, list):
        return _record(row, _beyond(turns_of(chosen), rejected), origin)
    text = _field(row, "chosen")
    if text.startswith("\n\nHuman:"):  # as Anthropic writes dialogues
        turns = _dialogue(text)
        return _record(row, [*_given(turns[:-1]), *turns[-1:]], origin)
    shared = _shared_words(text, rejected if isinstance(rejected, str) else "")
    if not shared.strip() or not text[len(shared) :].strip():
        return Record(text=text, origin=origin)
    return _record(row, [Turn("user", shared.rstrip()), Turn("assistant", text[len(shared) :])], origin)


def read_text(row: Mapping[str, Any], origin: str) -> Record:
    """A text without a prompt."""
    return Record(text=_field(row, "text"), origin=origin)


def _record(row: Mapping[str, Any], turns: list[Turn], origin: str) -> Record:
    """The record with what stands beside a conversation: the system prompt, the functions, whether it is wanted."""
    for key in VERDICTS:
        verdict = row.get(key)
        if verdict is False or (isinstance(verdict, str) and verdict.strip().lower() == "false"):
            raise Unwanted(f"{key} is false: the answer is a bad one")
    turns = without_end(turns)
    system = _field(row, "system", optional=True)
    if system.strip() and turns[0].role != "system":
        turns = [Turn("system", system), *turns]
    speaks_to_tools = any(turn.calls or turn.role == "tool" for turn in turns)
    tools = tools_of(row.get("tools")) if speaks_to_tools or "messages" in row else ""
    return Record(tuple(turns), tools=tools, origin=origin)


def _given(turns: list[Turn]) -> list[Turn]:
    """The turns of a prompt, whose answers are not to be learnt."""
    return [replace(turn, learnt=False) if turn.role == "assistant" else turn for turn in turns]


def _beyond(turns: list[Turn], rejected: object) -> list[Turn]:
    """A whole conversation of which only that is learnt in which it differs from the rejected one, or its end."""
    turns = without_end(turns)
    other = turns_of(listed) if isinstance(listed := _listed(rejected), list) else []
    alike = _alike(turns, other)
    if not any(turn.role == "assistant" for turn in turns[alike:]) or alike == 0:
        alike = max((at for at, turn in enumerate(turns) if turn.role == "user"), default=0)
    return [*_given(turns[:alike]), *turns[alike:]]


def _dialogue(text: str) -> list[Turn]:
    parts = _SPOKEN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    said = [(roles[who], words.strip()) for who, words in zip(parts[::2], parts[1::2], strict=True)]
    if not said or said[-1][0] != "assistant":
        raise BadInput("'chosen' is a dialogue of Human and Assistant that ends without an answer")
    return [Turn(role, words) for role, words in said]


def _shared_words(text: str, other: str) -> str:
    """The beginning that both texts share, up to the end of a word."""
    alike = _alike(text, other)
    while alike and alike < len(text) and not text[alike - 1].isspace():
        alike -= 1
    return text[:alike]


def _alike(these: Sequence[object], those: Sequence[object]) -> int:
    """How many items the two begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(these, those, strict=False)))


def _listed(value: object) -> object:
    """A conversation as a list: it may be stored as JSON text, or be the one message that it holds."""
    if isinstance(value, dict):
        return [value]
    if not isinstance(value, str) or not value.lstrip().startswith("[{") or '"role"' not in value:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # a text, after all
        return value


def _asked(row: Mapping[str, Any], prompt: str) -> str:
    more = _field(row, "input", optional=True) if prompt == "instruction" else ""
    return _paragraphs(_field(row, "context", optional=True), _field(row, prompt), more)


def _first_of(names: tuple[str, ...], row: Mapping[str, Any]) -> str:
    """The first of these columns that holds something, else that is there, else the first."""
    held = (name for name in names if present(row.get(name)))
    return next(held, next((name for name in names if name in row), names[0]))


def _field(row: Mapping[str, Any], key: str, optional: bool = False) -> str:
    value = row.get(key)
    if not isinstance(value, str) and not present(value):
        value = None
    if value is None and not optional:
        raise BadInput(f"it has no {key!r}")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadInput(f"{key!r} is of type {type(value).__name__}, expected text")
    if not optional and not value.strip():
        raise BadInput(f"{key!r} is empty")
    return value


def _paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part.strip())
