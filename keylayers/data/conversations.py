"""Conversations as the field writes them (OpenAI, ShareGPT and their kin) as turns of one spelling."""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from keylayers.data.records import Turn
from keylayers.errors import BadInput

SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "tool_response", "function_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "assistant"),
}
"""Role as data sets spell it, in lower case -> role of a turn."""

_CALLS = ("function_call", "tool_call")
_TEXT_PARTS = ("text", "input_text", "output_text")


def present(value: object) -> bool:
    """Whether a cell holds anything: tables write what is absent as null, NaN, or nothing at all."""
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and value != [] and not (isinstance(value, float) and math.isnan(value))


def turns_of(messages: object) -> list[Turn]:
    """The turns of a list of messages, or of one stored as JSON text; empty system messages are left out.

    A message is `{role, content}` or `{from, value}`; what an assistant calls stands in `tool_calls` or
    `function_call`, or is a message of its own. One of weight 0 (OpenAI), or with `train: false`, is given, not learnt.

    Raises:
        BadInput: if it is no such list, a role is unknown, or a content is empty or not text; names the message.
    """
    if isinstance(messages, str) and messages.lstrip().startswith("["):
        try:
            messages = json.loads(messages)
        except (ValueError, RecursionError):
            raise BadInput("the messages are a text that is no JSON, expected a list, or JSON of one") from None
    if not isinstance(messages, list):
        raise BadInput(f"the messages are of type {type(messages).__name__}, expected a list")
    turns = list[Turn]()
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise BadInput(f"message {number} is of type {type(message).__name__}, expected an object")
        try:
            turn = _turn(message)
        except BadInput as error:
            raise BadInput(f"message {number}: {error}") from None
        turns += [turn] if turn is not None else []
    return turns


def without_end(turns: list[Turn]) -> list[Turn]:
    """The turns up to the last answer: a question that nobody answered teaches nothing.

    Raises:
        BadInput: if there is no answer.
    """
    last = max((place for place, turn in enumerate(turns) if turn.role == "assistant"), default=-1)
    if last < 0:
        raise BadInput("the conversation has no assistant turn, so there is nothing to learn from it")
    return turns[: last + 1]


def tools_of(value: object) -> str:
    """The functions that may be called, as a JSON list; nothing for a cell that holds no such list."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return ""
    usable = isinstance(value, list) and value and all(isinstance(tool, dict) for tool in value)
    return _json(_without_nulls(value)) if usable else ""


def _turn(message: Mapping[str, Any]) -> Turn | None:
    spelled = next((message[key] for key in ("role", "from") if present(message.get(key))), None)
    name = spelled.strip().lower() if isinstance(spelled, str) else None
    if name not in SPEAKERS:
        raise BadInput(f"it has the unknown role {spelled!r}, expected one of {', '.join(SPEAKERS)}")
    role = SPEAKERS[name]
    content = _content(next((message[key] for key in ("content", "value", "text") if key in message), None))
    calls = _calls(message) if role == "assistant" else ()
    if name in _CALLS and isinstance(content, str) and (alone := _calls_in(content)):
        content, calls = "", alone
    if calls and not present(content):
        content = ""
    if role == "system" and not present(content):
        return None
    learnt = not (role == "assistant" and (_is_zero(message.get("weight")) or message.get("train") is False))
    return Turn(role, content, calls, learnt)


def _content(content: Any) -> Any:
    """The text of a message, whose content may be a list of text parts."""
    if not isinstance(content, list):
        return content if isinstance(content, str) or present(content) else None
    texts = list[str]()
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict) or part.get("type") not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadInput(f"its content has a part that is not text ({kind}); only text can be read")
        texts.append(part["text"])
    return "".join(texts)


def _calls(message: Mapping[str, Any]) -> tuple[str, ...]:
    """What an assistant calls beside its content: a list of `tool_calls`, or the one `function_call` of before."""
    held = message.get("tool_calls")
    if not present(held):
        held = [message["function_call"]] if isinstance(message.get("function_call"), dict) else []
    if not isinstance(held, list):
        raise BadInput(f"its tool_calls are of type {type(held).__name__}, expected a list")
    found = tuple(_call(one) for one in held)
    if None in found:
        raise BadInput("one of its tool_calls has no function name")
    return tuple(one for one in found if one is not None)


def _calls_in(content: str) -> tuple[str, ...]:
    """The calls that a message of its own is, as JSON; none where it is written otherwise."""
    try:
        held = json.loads(content)
    except (ValueError, RecursionError):
        return ()
    found = tuple(_call(one) for one in (held if isinstance(held, list) else [held]))
    return () if None in found else tuple(one for one in found if one is not None)


def _call(held: object) -> str | None:
    if not isinstance(held, dict):
        return None
    inner = held.get("function")
    function = inner if isinstance(inner, dict) else held
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):  # else it stays as the model wrote it
            arguments = json.loads(arguments)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        return None
    return _json({"name": name, "arguments": _without_nulls(arguments) if present(arguments) else {}})


def _without_nulls(value: Any) -> Any:
    """Parquet gives every object of a column all keys that any of them has; the null ones are absent."""
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _is_zero(weight: object) -> bool:
    return isinstance(weight, int | float) and weight == 0


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
