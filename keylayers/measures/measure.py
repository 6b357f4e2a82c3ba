"""Costs of a model besides its loss, for criteria that compare a model with and without a layer; lower is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from keylayers.data.records import Record, Records
from keylayers.data.tokenisation import IGNORED
from keylayers.errors import BadInput, UnknownName
from keylayers.measures.objective import Batch, Loss, predictions

Name = Literal["loss", "tokens", "answers", "generated"]
MEASURES: tuple[str, ...] = get_args(Name)


@dataclass(frozen=True)
class Measure:
    """A cost: of a batch by teacher forcing, so that blocks below a change are computed once, or of a whole model."""

    name: str
    by_batch: Loss | None = None
    """(model, batch) -> sum over its terms, their number."""
    by_record: Callable[[nn.Module], Float[np.ndarray, " records"]] | None = None
    """Cost of every record, in [0, 1]; used where there is no `by_batch`."""


def wrong_tokens(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Supervised tokens that are not the most likely one, given those before; and how many there are."""
    wrong, kept = _wrong(model, batch)
    return wrong.sum(dtype=torch.float64), int(kept.sum())


def wrong_answers(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Records with any wrong token, and the records with a supervised token.

    An answer is right here exactly if greedy generation would write the same tokens, the end token included where it is
    supervised; one forward pass tells, where generation needs one per token.
    """
    wrong, kept = _wrong(model, batch)
    rows = kept.any(1)
    return wrong.any(1)[rows].sum(dtype=torch.float64), int(rows.sum())


def _wrong(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    logits, targets = predictions(model, batch)
    targets = targets.to(logits.device)
    kept = targets != IGNORED
    return (logits.argmax(-1) != targets) & kept, kept


def measure_named(
    name: str,
    *,
    tokenizer: Any = None,
    records: Records | Sequence[Record] | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 16,
) -> Measure | None:
    """The measure of that name; None for `loss`, which every criterion has from its evidence.

    `tokens` and `answers` are error rates by teacher forcing; `generated` is the share of records whose prompt greedy
    generation does not answer exactly, and takes the tokenizer and the records.

    Raises:
        UnknownName: for another name. BadInput: for `generated` without records to answer.
    """
    if name not in MEASURES:
        raise UnknownName("measure", name, MEASURES)
    if name == "loss":
        return None
    if name != "generated":
        return Measure(name, by_batch={"tokens": wrong_tokens, "answers": wrong_answers}[name])
    if tokenizer is None or not records:
        raise BadInput("the measure 'generated' needs a tokenizer and records with prompts; use tokens or answers.")
    given = records

    def by_record(model: nn.Module) -> Float[np.ndarray, " records"]:
        from keylayers.measures.accuracy import exact_match

        found = exact_match(model, tokenizer, given, max_new_tokens=max_new_tokens, batch_size=batch_size)
        return 1.0 - np.array(found.correct, dtype=np.float64)

    return Measure(name, by_record=by_record)
