"""Templates: a record as pieces of text, each either given to the model or to be learnt by it."""

from typing import Any, NamedTuple

from keylayers.data.records import Record, Turn
from keylayers.errors import BadInput

PLAIN = "{prompt}\n\n{completion}"
"""What is used where a tokenizer has no chat template; the end-of-sequence token follows every completion."""

_SENTINEL = "\u27e6answer\u27e7"


class Piece(NamedTuple):
    """A stretch of text."""

    text: str
    supervised: bool
    """Whether the model is to learn it."""


class Layout(NamedTuple):
    """A record as the model sees it."""

    runs: tuple[tuple[Piece, ...], ...]
    """Texts that are tokenised as one; an end-of-sequence token, supervised, follows each where `stops`."""
    stops: bool
    """Whether runs end with the end-of-sequence token; a chat template brings its own."""


def resolve_template(tokenizer: Any, template: str) -> str:
    """`chat`, or a text with `{prompt}` and `{completion}`: what `auto`, `plain`, `chat` or such a text stands for.

    Raises:
        BadInput: if `chat` is asked of a tokenizer without a chat template, or a text lacks its places.
    """
    has_chat = bool(tokenizer.chat_template)
    if template == "auto":
        return "chat" if has_chat else PLAIN
    if template == "chat" and not has_chat:
        raise BadInput("template='chat': this tokenizer has no chat template; use 'plain' or a text with places")
    if template in ("chat", "plain"):
        return {"chat": "chat", "plain": PLAIN}[template]
    places = (template.count("{prompt}"), template.count("{completion}"))
    if places != (1, 1) or template.index("{prompt}") > template.index("{completion}"):
        raise BadInput(
            f"template={template!r}: expected 'auto', 'chat', 'plain' or a text with {{prompt}} once and, after it, "
            f"{{completion}} once"
        )
    return template


def lay_out(record: Record, tokenizer: Any, template: str) -> Layout:
    """A record under a resolved template. Every answer of a conversation is supervised; all of a plain text is."""
    if record.text is not None:
        return Layout(((Piece(record.text, True),),), stops=True)
    if template == "chat":
        return Layout((_chat_pieces(record, tokenizer),), stops=False)
    parting = "\n\n" if tokenizer.eos_token_id is None else ""
    return Layout(tuple(_exchanges(record, template, parting)), stops=True)


def _exchanges(record: Record, template: str, parting: str) -> list[tuple[Piece, ...]]:
    head, _, rest = template.partition("{prompt}")
    middle, _, tail = rest.partition("{completion}")
    runs, asked = list[tuple[Piece, ...]](), list[str]()
    for turn in record.turns:
        if turn.role != "assistant":
            asked.append(turn.content)
            continue
        given = (parting if runs else "") + head + "\n\n".join(asked) + middle
        pieces = (Piece(given, False), Piece(turn.content + tail, True))
        runs.append(tuple(piece for piece in pieces if piece.text))
        asked = []
    return runs


def _chat_pieces(record: Record, tokenizer: Any) -> tuple[Piece, ...]:
    whole = _rendered(record, record.turns, tokenizer)
    pieces, at = list[Piece](), 0
    for index, turn in enumerate(record.turns):
        if turn.role == "assistant":
            start, end = _answer_span(record, index, whole, tokenizer)
            pieces += [Piece(whole[at:start], False), Piece(whole[start:end], True)]
            at = end
    return tuple(piece for piece in pieces if piece.text)


def _answer_span(record: Record, index: int, whole: str, tokenizer: Any) -> tuple[int, int]:
    """Where an answer and its stop token stand in the rendered conversation, without the space that follows.

    From the generation prompt on, as the model will see it, to the end of the conversation cut after this turn. Some
    templates render earlier answers differently from the last (Qwen3 drops their reasoning): there the place of the
    content is found by putting a mark in its stead.
    """
    before = _rendered(record, record.turns[:index], tokenizer, prompt=True) if index else ""
    until = _rendered(record, record.turns[: index + 1], tokenizer)
    if whole.startswith(before) and whole.startswith(until) and len(until.rstrip()) > len(before):
        return len(before), len(until.rstrip())
    marked = list(record.turns)
    marked[index] = Turn("assistant", _SENTINEL)
    head, found, tail = _rendered(record, marked, tokenizer).partition(_SENTINEL)
    end = len(whole) - len(tail)
    if not found or not whole.startswith(head) or not whole.endswith(tail) or end <= len(head):
        raise BadInput(
            f"{record.origin}: the chat template changes the text around turn {index + 1}, so that its place cannot be "
            f"told; use template='plain' or a text with {{prompt}} and {{completion}}"
        )
    stops = [token for token in tokenizer.all_special_tokens if tail.startswith(token)]
    return len(head), end + max((len(token) for token in stops), default=0)


def _rendered(record: Record, turns: Any, tokenizer: Any, prompt: bool = False) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # templates raise jinja errors, and plain ones where they index what is not there
        raise BadInput(
            f"{record.origin}: the tokenizer's chat template refuses this conversation "
            f"({', '.join(turn.role for turn in turns)}): {error}; use template='plain'"
        ) from error
