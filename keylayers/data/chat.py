"""Conversations through a tokenizer's own chat template, with the place of every answer in what it makes of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from keylayers.data.pieces import Piece
from keylayers.data.records import Record, Turn
from keylayers.errors import BadInput

_SENTINEL = "\u27e6answer\u27e7"


def chat_pieces(record: Record, tokenizer: Any) -> tuple[Piece, ...]:
    """The rendered conversation, cut where answers begin and end; headers and what a template adds are only given.

    Raises:
        BadInput: if the template refuses the conversation, or changes it so that an answer has no place in it.
    """
    record = _spoken(record, tokenizer)
    whole = _rendered(record, record.turns, tokenizer)
    pieces, at = list[Piece](), 0
    for index, turn in enumerate(record.turns):
        if turn.role == "assistant" and turn.learnt:
            start, end = _answer_span(record, index, whole, tokenizer)
            if start < at:
                raise _displaced(record, index)
            pieces += [Piece(whole[at:start], False), Piece(whole[start:end], True)]
            at = end
    return tuple(piece for piece in pieces if piece.text)


def _spoken(record: Record, tokenizer: Any) -> Record:
    """The record as this template can say it, without the tokens of beginning and end that a content carries itself.

    Function calls, their results and the functions on offer are the template's own affair where it shows them; where it
    does not, calls become text, results are what the user says, and the functions stand before all else.
    """
    turns = tuple(_bare(turn, tokenizer) for turn in record.turns)
    record = replace(record, turns=turns)
    if not record.tools and not any(turn.calls or turn.role == "tool" for turn in turns):
        return _without_system(record, tokenizer)
    if _shows_functions(record, tokenizer):
        return record
    said = list[Turn]()
    for turn in turns:
        if turn.calls:
            turn = replace(turn, content=turn.text, calls=())
        elif turn.role == "tool":
            turn = Turn("user", f"<tool_response>\n{turn.content}\n</tool_response>")
        if said and said[-1].role == turn.role == "user":  # templates want roles to alternate
            said[-1] = Turn("user", f"{said[-1].content}\n{turn.content}")
        else:
            said.append(turn)
    if record.tools and said[0].role != "assistant":
        said[0] = replace(said[0], content=f"<tools>\n{record.tools}\n</tools>\n\n{said[0].content}")
    return _without_system(replace(record, turns=tuple(said), tools=""), tokenizer)


def _without_system(record: Record, tokenizer: Any) -> Record:
    """The record itself; where the template refuses it for its system turn, that stands before the first question."""
    system, *others = record.turns
    if system.role != "system" or not others or others[0].role != "user":
        return record
    if _beginning(record, record.turns, tokenizer) is not None:
        return record
    return replace(record, turns=(replace(others[0], content=f"{system.content}\n\n{others[0].content}"), *others[1:]))


def _shows_functions(record: Record, tokenizer: Any) -> bool:
    try:
        whole = _rendered(record, record.turns, tokenizer)
    except BadInput:
        return False
    names = [json.loads(call)["name"] for turn in record.turns for call in turn.calls]
    results = [turn.content.strip() for turn in record.turns if turn.role == "tool"]
    offered = [str(tool.get("function", tool).get("name", "")) for tool in json.loads(record.tools or "[]")]
    return all(text in whole for text in (*names, *results, *offered))


def _bare(turn: Turn, tokenizer: Any) -> Turn:
    content = turn.content
    if (start := tokenizer.bos_token) and content.startswith(start):
        content = content[len(start) :]
    if (stop := tokenizer.eos_token) and content.endswith(stop):
        content = content[: -len(stop)]
    return turn if content == turn.content or not content.strip() else replace(turn, content=content)


def _answer_span(record: Record, index: int, whole: str, tokenizer: Any) -> tuple[int, int]:
    """Where an answer and its stop token stand in the rendered conversation, without the space that follows.

    From the generation prompt on, as the model will see it, to the end of the conversation cut after this turn. Some
    templates render earlier answers differently from the last (Qwen3 drops their reasoning), and an answer that opens
    the conversation follows no generation prompt: there the place of the content is found by putting a mark in its
    stead.
    """
    before = _beginning(record, record.turns[:index], tokenizer, prompt=True) if index else None
    until = _beginning(record, record.turns[: index + 1], tokenizer)
    if before is not None and until is not None:
        end = len(until.rstrip())
        if whole.startswith(before) and whole.startswith(until) and end > len(before):
            return len(before), end
    marked = list(record.turns)
    marked[index] = replace(record.turns[index], content=_SENTINEL, calls=())
    head, found, tail = _rendered(record, marked, tokenizer).partition(_SENTINEL)
    end = len(whole) - len(tail)
    if not found or not whole.startswith(head) or not whole.endswith(tail) or end <= len(head):
        raise _displaced(record, index)
    stops = [token for token in tokenizer.all_special_tokens if tail.startswith(token)]
    return len(head), end + max((len(token) for token in stops), default=0)


def _displaced(record: Record, index: int) -> BadInput:
    return BadInput(
        f"{record.origin}: the chat template changes the text around turn {index + 1}, so its place cannot be told",
        "use `template=plain`",
    )


def _beginning(record: Record, turns: Sequence[Turn], tokenizer: Any, prompt: bool = False) -> str | None:
    """The rendered beginning of a conversation; None where the template refuses it, though it may take the whole."""
    try:
        return _rendered(record, turns, tokenizer, prompt)
    except BadInput:
        return None


def _rendered(record: Record, turns: Sequence[Turn], tokenizer: Any, prompt: bool = False) -> str:
    tools = json.loads(record.tools) if record.tools else None
    try:
        return tokenizer.apply_chat_template(
            [_message(turn) for turn in turns], tools=tools, tokenize=False, add_generation_prompt=prompt
        )
    except Exception as error:  # templates raise jinja errors, and plain ones where they index what is not there
        raise BadInput(
            f"{record.origin}: the tokenizer's chat template refuses this conversation "
            f"({', '.join(turn.role for turn in turns)}): {error}",
            "use `template=plain`",
        ) from error


def _message(turn: Turn) -> dict[str, Any]:
    calls: list[Mapping[str, Any]] = [{"type": "function", "function": json.loads(call)} for call in turn.calls]
    return {"role": turn.role, "content": turn.content, **({"tool_calls": calls} if calls else {})}
