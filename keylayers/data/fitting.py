"""Examples as each family of models takes them: no network may see what it is asked for."""

import random
from dataclasses import replace
from typing import Any

from keylayers.data.tokenisation import IGNORED, Examples, closing
from keylayers.errors import BadInput
from keylayers.models.families import Family

MASKED_SHARE = 0.15
"""Of the tokens of a text without a prompt that a masked language model is asked for, as BERT was trained."""


def fitted(examples: Examples, family: Family, tokenizer: Any) -> Examples:
    """The examples as `tokenise` makes them, for causal models, made into those of another family.

    An encoder-decoder model reads all that stands before the last answer and is asked for that answer; earlier answers
    are then part of what it reads. A masked language model is given a mask in the place of every token of the answers;
    of a text without a prompt, in the place of 15 % of the tokens, drawn by its content. What a tokenizer puts after a
    text of its own accord follows what an encoder reads.

    Raises:
        BadInput: for a masked language model whose tokenizer has no mask.
    """
    end = closing(tokenizer)
    if family == "encoder-decoder":
        starts = [max(at for at, label in enumerate(labels) if label == IGNORED) + 1 for labels in examples.labels]
        return replace(
            examples,
            input_ids=tuple((*ids[:at], *end) for ids, at in zip(examples.input_ids, starts, strict=True)),
            labels=tuple(labels[at:] for labels, at in zip(examples.labels, starts, strict=True)),
        )
    if family == "masked":
        mask = tokenizer.mask_token_id
        if mask is None:
            raise BadInput(
                "a masked language model is asked for tokens behind a mask, and its tokenizer has no mask token; give "
                "a tokenizer with one, or a causal language model"
            )
        pairs = [_masked(*pair, mask) for pair in zip(examples.input_ids, examples.labels, strict=True)]
        return replace(
            examples,
            input_ids=tuple((*ids, *end) for ids, _ in pairs),
            labels=tuple((*labels, *(IGNORED for _ in end)) for _, labels in pairs),
        )
    return examples


def _masked(ids: tuple[int, ...], labels: tuple[int, ...], mask: int) -> tuple[list[int], list[int]]:
    hidden = [at for at, label in enumerate(labels) if label != IGNORED]
    if len(hidden) >= len(labels) - 1:  # a text: no prompt is given
        drawn = random.Random(repr(ids))
        hidden = sorted(drawn.sample(hidden, max(1, round(MASKED_SHARE * len(hidden)))))
    asked = set(hidden)
    return (
        [mask if at in asked else token for at, token in enumerate(ids)],
        [label if at in asked else IGNORED for at, label in enumerate(labels)],
    )
