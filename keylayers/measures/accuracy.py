"""Accuracy of generated answers: the share of prompts that greedy decoding answers exactly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from keylayers.data.batches import batch_indices, collate
from keylayers.data.records import Record, Records
from keylayers.data.tokenisation import IGNORED, Examples, closing, padding_id, tokenise_prompts
from keylayers.errors import BadInput
from keylayers.measures.intervals import Interval, wilson_interval
from keylayers.measures.loss import evaluating
from keylayers.measures.objective import model_device, predictions
from keylayers.models.families import context_of, family_of


@dataclass(frozen=True)
class Accuracy:
    """Which prompts were answered right."""

    correct: tuple[bool, ...]
    """Per record, in the order given."""
    answers: tuple[str, ...]
    """What the model wrote."""

    @property
    def mean(self) -> float:
        """Share of right answers, in [0, 1]."""
        return sum(self.correct) / len(self.correct)

    def interval(self, level: float = 0.95) -> Interval:
        """The share with Wilson's interval over prompts."""
        return wilson_interval(sum(self.correct), len(self.correct), level=level)


def same_text(answer: str, expected: str) -> bool:
    """Whether two texts are equal but for spacing at their ends and its amount between words."""
    return answer.split() == expected.split()


def greedy_matches(model: nn.Module, examples: Examples, *, batch_size: int = 16) -> tuple[bool, ...]:
    """For each example, whether greedy decoding from its prompt would write its supervised tokens exactly.

    One forward pass over both tells it: decoding follows the tokens just when each is the most probable one after those
    before it.
    """
    found = [False] * len(examples)
    with evaluating(model), torch.no_grad():
        for places in batch_indices([len(ids) for ids in examples.input_ids], batch_size, shuffle=False):
            logits, targets = predictions(model, collate(examples.take(places)))
            right = ((logits.argmax(-1) == targets) | (targets == IGNORED)).all(1).tolist()
            for place, hit in zip(places, right, strict=True):
                found[place] = hit
    return tuple(found)


def exact_match(
    model: Any,
    tokenizer: Any,
    records: Records | Sequence[Record],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    template: str = "auto",
    matches: Callable[[str, str], bool] = same_text,
    context: int | None = None,
) -> Accuracy:
    """Generates an answer to each record's prompt, greedily, and compares it with the record's completion.

    Prompts are tokenised as `tokenise` does for training, and padded on the left; to an encoder-decoder model they are
    what its encoder reads. `matches(answer, expected)` decides
    what is right. `context` is the model's length limit (default: its configuration's, else the tokenizer's).

    Raises:
        BadInput: if there is no record, one is a plain text, a prompt leaves no room for the answer, or the model does
            not write.
    """
    from transformers import GenerationConfig

    if len(records) == 0:
        raise BadInput("there is no record to answer")
    family = family_of(model)
    if family in ("masked", "bidirectional"):
        raise BadInput(
            f"{type(model).__name__} writes no text, so nothing is generated; measure loss or tokens instead."
        )
    prompts = tokenise_prompts(records, tokenizer, template=template)
    room = (context or context_of(model) or int(tokenizer.model_max_length)) - max_new_tokens
    if family == "encoder-decoder":
        end = tuple(closing(tokenizer))
        prompts = tuple((*prompt, *end) for prompt in prompts)
        room += max_new_tokens  # the answer is written elsewhere
    too_long = [i for i, prompt in enumerate(prompts) if len(prompt) > room]
    if too_long:
        raise BadInput(
            f"{len(too_long)} of {len(prompts)} prompts leave no room for {max_new_tokens} new tokens, the first "
            f"{records[too_long[0]].origin} with {len(prompts[too_long[0]])} tokens; lower max_new_tokens or leave "
            f"those records out"
        )
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        pad_token_id=padding_id(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=_stop_ids(model, tokenizer),
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )
    answers = [""] * len(prompts)
    with evaluating(model), torch.no_grad():
        for places in batch_indices([len(prompt) for prompt in prompts], batch_size, shuffle=False):
            written = _generated(model, [prompts[place] for place in places], settings)
            for place, ids in zip(places, written, strict=True):
                answers[place] = tokenizer.decode(ids, skip_special_tokens=True)
    pairs = zip(answers, records, strict=True)
    return Accuracy(tuple(matches(answer, record.completion) for answer, record in pairs), tuple(answers))


def _generated(model: Any, prompts: list[tuple[int, ...]], settings: Any) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), settings.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    device = model_device(model)
    written = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=settings)
    start = 1 if family_of(model) == "encoder-decoder" else longest
    return [_until_stop(row, settings.eos_token_id) for row in written[:, start:].tolist()]


def _until_stop(ids: list[int], stops: Sequence[int] | None) -> list[int]:
    """What was written before the first stop token; what follows in a batch is padding, which may be a word's token."""
    end = next((at for at, token in enumerate(ids) if token in (stops or ())), len(ids))
    return ids[:end]


def _stop_ids(model: Any, tokenizer: Any) -> list[int] | None:
    own = model.generation_config.eos_token_id
    stops = {*(own if isinstance(own, list | tuple) else [own]), tokenizer.eos_token_id} - {None}
    return sorted(stops) or None
