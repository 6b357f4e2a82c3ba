"""Templates: a record as pieces of text, each either given to the model or to be learnt by it."""

from typing import Any

from keylayers.data.chat import chat_pieces
from keylayers.data.pieces import Layout, Piece
from keylayers.data.records import Record
from keylayers.errors import BadInput

PLAIN = "{prompt}\n\n{completion}"
"""What is used where a tokenizer has no chat template; the end-of-sequence token follows every completion."""


def resolve_template(tokenizer: Any, template: str) -> str:
    """`chat`, or a text with `{prompt}` and `{completion}`: what `auto`, `plain`, `chat` or such a text stands for.

    Raises:
        BadInput: if `chat` is asked of a tokenizer without a chat template, or a text lacks its places.
    """
    has_chat = bool(tokenizer.chat_template)
    if template == "auto":
        return "chat" if has_chat else PLAIN
    if template == "chat" and not has_chat:
        raise BadInput("`template=chat`: this tokenizer has no chat template", "use `template=plain`")
    if template in ("chat", "plain"):
        return {"chat": "chat", "plain": PLAIN}[template]
    places = (template.count("{prompt}"), template.count("{completion}"))
    if places != (1, 1) or template.index("{prompt}") > template.index("{completion}"):
        raise BadInput(
            f"`template={template}`: expected auto, chat, plain, or a text with {{prompt}} once and, after it, "
            f"{{completion}} once"
        )
    return template


def lay_out(record: Record, tokenizer: Any, template: str) -> Layout:
    """A record under a resolved template. Answers that are to be learnt are supervised; all of a plain text is.

    Raises:
        BadInput: if the chat template refuses the conversation, or changes it so that an answer has no place in it.
    """
    if record.text is not None:
        return Layout(((Piece(record.text, True),),), stops=True)
    if template == "chat":
        return Layout((chat_pieces(record, tokenizer),), stops=False)
    parting = "\n\n" if tokenizer.eos_token_id is None else ""
    return Layout(tuple(_exchanges(record, template, parting)), stops=True)


def _exchanges(record: Record, template: str, parting: str) -> list[tuple[Piece, ...]]:
    head, _, rest = template.partition("{prompt}")
    middle, _, tail = rest.partition("{completion}")
    runs, asked = list[tuple[Piece, ...]](), [record.tools] if record.tools else []
    for turn in record.turns:
        if turn.role != "assistant":
            asked.append(turn.text)
            continue
        given = (parting if runs else "") + head + "\n\n".join(asked) + middle
        pieces = (Piece(given, False), Piece(turn.text + tail, turn.learnt))
        runs.append(tuple(piece for piece in pieces if piece.text))
        asked = []
    return runs
