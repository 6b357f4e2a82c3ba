"""Tokenising: records as token sequences whose labels cover exactly what the model must produce itself."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from keylayers.data.formats import BAD_SHARE
from keylayers.data.pieces import Layout, Piece
from keylayers.data.records import Record, Records, Skipped
from keylayers.data.templates import lay_out, resolve_template
from keylayers.errors import BadInput

IGNORED = -100
"""Label of a position without loss, as Hugging Face models and torch's cross-entropy have it."""

DEFAULT_MAX_LENGTH = 1024
_CHUNK = 2000  # texts per tokenizer call: enough to use its threads, few enough to bound memory


@dataclass(frozen=True)
class TruncationReport:
    """What the length limit cost."""

    max_length: int
    records: int
    """How many were given."""
    truncated: int
    """How many were longer than the limit and lost their end."""
    tokens_lost: int
    """Tokens beyond the limit, over all records."""
    dropped: int
    """How many had no supervised token left and were left out."""
    refused: tuple[Skipped, ...] = ()
    """Records that the chat template cannot tell, left out."""

    def __str__(self) -> str:
        if not self.truncated:
            return f"none of {self.records} records exceeds {self.max_length} tokens"
        return (
            f"{self.truncated} of {self.records} records cut at {self.max_length} tokens ({self.tokens_lost:,} tokens "
            f"lost), {self.dropped} of them left out because no supervised token remained"
        )


@dataclass(frozen=True)
class Examples:
    """Token sequences with labels at the same positions (Hugging Face's convention: the model shifts them).

    For an encoder-decoder model the labels are of what its decoder writes (`keylayers.data.fitting`).
    """

    input_ids: tuple[tuple[int, ...], ...]
    labels: tuple[tuple[int, ...], ...]
    """The token where it is supervised, else -100; in a causal model never at position 0, which nothing predicts."""
    origins: tuple[str, ...]
    pad_id: int
    report: TruncationReport

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return sum(label != IGNORED for labels in self.labels for label in labels)

    def take(self, indices: Iterable[int]) -> "Examples":
        """The examples at these places, in this order."""
        places = list(indices)
        return Examples(
            tuple(self.input_ids[i] for i in places),
            tuple(self.labels[i] for i in places),
            tuple(self.origins[i] for i in places),
            self.pad_id,
            self.report,
        )

    def rows(self) -> list[dict[str, list[int]]]:
        """One dict of `input_ids`, `attention_mask` and `labels` per example, for `datasets.Dataset.from_list`."""
        return [
            {"input_ids": list(ids), "attention_mask": [1] * len(ids), "labels": list(labels)}
            for ids, labels in zip(self.input_ids, self.labels, strict=True)
        ]


def tokenise(
    records: Records | Sequence[Record],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    completion_only: bool = True,
    template: str = "auto",
    bad_share: float = BAD_SHARE,
) -> Examples:
    """Token sequences of the records, cut on the right at `max_length`, supervised on their completions only.

    The prompt's tokens are those that the prompt alone has, so that training sees the boundary generation will see: no
    token ever spans it. `template` is `auto` (the tokenizer's chat template, else plain), `chat`, `plain` or a text
    with `{prompt}` and `{completion}`. `max_length` defaults to the tokenizer's, at most 1024; a caller who knows the
    model passes its context. `completion_only=False` supervises every token. A share `bad_share` of the records may be
    such that the chat template refuses them; they are left out.

    Raises:
        BadInput: if no example keeps a supervised token, or the template cannot serve.
    """
    limit = default_max_length(tokenizer) if max_length is None else max_length
    if limit < 2:
        raise BadInput(f"max_length={limit}: expected at least 2 tokens, one to see and one to predict")
    if len(records) == 0:
        raise BadInput("there is no record to tokenise")
    kept_ids, kept_labels, origins = list[tuple[int, ...]](), list[tuple[int, ...]](), list[str]()
    truncated = lost = dropped = 0
    shortest_start = None
    refused = list[Skipped]()
    for record, encoded in zip(records, _encoded(records, tokenizer, template), strict=True):
        if isinstance(encoded, BadInput):
            refused.append(Skipped(record.origin, str(encoded)))
            continue
        ids, supervised = encoded
        truncated += len(ids) > limit
        lost += max(0, len(ids) - limit)
        flags = supervised if completion_only else [True] * len(ids)
        labels = (IGNORED, *(i if flag else IGNORED for i, flag in zip(ids[1:limit], flags[1:limit], strict=True)))
        start = next((at for at, flag in enumerate(flags) if flag and at), len(flags))
        shortest_start = start if shortest_start is None else min(start, shortest_start)
        if all(label == IGNORED for label in labels):
            dropped += 1
            continue
        kept_ids.append(tuple(ids[:limit]))
        kept_labels.append(labels)
        origins.append(record.origin)
    if len(refused) > bad_share * len(records):
        counted = f"{len(refused)} of {len(records)} conversations cannot be told by the template, the first: "
        raise BadInput(f"{counted if len(records) > 1 else ''}{refused[0].reason}")
    if not kept_ids:
        raise _nothing_to_learn(records, limit, shortest_start or 0)
    report = TruncationReport(limit, len(records), truncated, lost, dropped, tuple(refused))
    return Examples(tuple(kept_ids), tuple(kept_labels), tuple(origins), padding_id(tokenizer), report)


def tokenise_prompts(
    records: Records | Sequence[Record], tokenizer: Any, *, template: str = "auto"
) -> tuple[tuple[int, ...], ...]:
    """The tokens before each record's last completion: exactly what `tokenise` puts before it.

    Raises:
        BadInput: if a record is a plain text, which has no prompt.
    """
    prompts = list[tuple[int, ...]]()
    for record, encoded in zip(records, _encoded(records, tokenizer, template), strict=True):
        if isinstance(encoded, BadInput):
            raise encoded
        if record.text is not None:
            raise BadInput(f"{record.origin} is a plain text: it has no prompt to answer")
        ids, supervised = encoded
        last_given = max((at for at, flag in enumerate(supervised) if not flag), default=-1)
        prompts.append(tuple(ids[: last_given + 1]))
    return tuple(prompts)


def default_max_length(tokenizer: Any) -> int:
    """The tokenizer's own length limit, at most 1024. (Without one, tokenizers state an absurdly large number.)"""
    return min(int(tokenizer.model_max_length), DEFAULT_MAX_LENGTH)


def padding_id(tokenizer: Any) -> int:
    """The padding token, else the end-of-sequence token, else 0; harmless, since padding is masked by position."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def _nothing_to_learn(records: Records | Sequence[Record], limit: int, shortest_start: int) -> BadInput:
    source = records.source if isinstance(records, Records) else records[0].origin
    return BadInput(
        f"data with no supervised token: all {len(records)} records of {source} lose their completion, because the "
        f"prompts alone fill the {limit} tokens a record is cut at (the shortest has {shortest_start})",
        "give shorter prompts",
        "raise `max_length` up to the model's context",
    )


def _encoded(
    records: Records | Sequence[Record], tokenizer: Any, template: str
) -> Iterable[tuple[list[int], list[bool]] | BadInput]:
    """Tokens of each record and which are to be learnt, or why the template cannot tell it."""
    resolved = resolve_template(tokenizer, template)
    start = opening(tokenizer)
    for at in range(0, len(records), _CHUNK):
        layouts = [_laid_out(record, tokenizer, resolved) for record in list(records)[at : at + _CHUNK]]
        runs = [run for layout in layouts if isinstance(layout, Layout) for run in layout.runs]
        encodings = iter(_ids(tokenizer, [prefix for run in runs for prefix in _prefixes(run)]))
        for layout in layouts:
            if isinstance(layout, BadInput):
                yield layout
            else:
                yield _assembled(layout, encodings, tokenizer, start if layout.stops else [])


def _laid_out(record: Record, tokenizer: Any, template: str) -> Layout | BadInput:
    try:
        return lay_out(record, tokenizer, template)
    except BadInput as error:
        return error


def _assembled(
    layout: Layout, encodings: Iterable[list[int]], tokenizer: Any, start: list[int]
) -> tuple[list[int], list[bool]]:
    """The pieces' tokens with those of beginning and end, each only where the text does not bring its own."""
    queue = iter(encodings)
    ids, supervised = list[int](), list[bool]()
    for run in layout.runs:
        before: list[int] = []
        for piece in run:
            until = next(queue)
            extends = until[: len(before)] == before
            new = until[len(before) :] if extends else _continuation(tokenizer, piece.text)
            ids += new
            supervised += [piece.supervised] * len(new)
            before = until
        stop = tokenizer.eos_token_id
        if layout.stops and stop is not None and ids[-1:] != [stop]:
            ids.append(stop)
            supervised.append(run[-1].supervised)
    if ids[: len(start)] != start:
        ids, supervised = [*start, *ids], [*([False] * len(start)), *supervised]
    return ids, supervised


def _prefixes(run: Sequence[Piece]) -> list[str]:
    texts, text = list[str](), ""
    for piece in run:
        text += piece.text
        texts.append(text)
    return texts


def _continuation(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text that goes on from another, where tokenising both as one would merge across their boundary.

    Tokenised after a mark that is then cut off, so that a tokenizer which begins every text with a space adds none.
    """
    for mark in ("\n", ".", "a"):
        alone, marked = _ids(tokenizer, [mark, mark + text])
        if marked[: len(alone)] == alone and len(marked) > len(alone):
            return marked[len(alone) :]
    return _ids(tokenizer, [text])[0]


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def opening(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before a text of its own accord, such as the beginning of a sequence."""
    return _surrounding(tokenizer)[0]


def closing(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts after a text of its own accord."""
    return _surrounding(tokenizer)[1]


def _surrounding(tokenizer: Any) -> tuple[list[int], list[int]]:
    whole, bare = list(tokenizer("a")["input_ids"]), _ids(tokenizer, ["a"])[0]
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return whole[:at], whole[at + len(bare) :]
    return [], []
