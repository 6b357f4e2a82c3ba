"""The losses that are differentiated or compared: summed over a batch, with the count that normalises them globally."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from keylayers.data.tokenise import IGNORED
from keylayers.errors import BadInput, Diverged

Batch = Mapping[str, Any]
Loss = Callable[[nn.Module, Batch], tuple[Tensor, int]]
"""(model, batch) -> summed loss in nats (differentiable), number of terms in it."""


def language_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Summed next-token cross-entropy over supervised positions, in nats (fp32), and their number.

    Encoder-decoder and masked models predict the label at its own position, so theirs is not shifted.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    labels = batch["labels"]
    if _predicts_in_place(model):
        logits = model(**(dict(batch) if getattr(model.config, "is_encoder_decoder", False) else inputs)).logits
    else:
        logits, labels = model(**inputs).logits[:, :-1], labels[:, 1:]
    kept = labels != IGNORED
    return cross_entropy(logits[kept].float(), labels[kept], reduction="sum"), int(kept.sum())


def image_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Summed cross-entropy of image classes, in nats (fp32), and the number of images."""
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    out = model(**inputs)
    logits = out if isinstance(out, Tensor) else out.logits
    return cross_entropy(logits.float(), batch["labels"], reduction="sum"), len(batch["labels"])


def count_terms(batches: Iterable[Batch]) -> int:
    """Supervised positions in the batches that have a predecessor to predict them from."""
    counts = (int((b["labels"][:, 1:] != IGNORED).sum()) if b["labels"].ndim > 1 else len(b["labels"]) for b in batches)
    return supervised(sum(counts))


def supervised(count: int) -> int:
    """The count itself. Raises BadInput if there is nothing to learn from."""
    if count == 0:
        raise BadInput(
            "the data has no supervised token: every label is masked. Give records with completions that fit the context."
        )
    return count


def finite(value: float, what: str) -> float:
    """The value itself. Raises Diverged if it is NaN or infinite."""
    if not torch.isfinite(torch.tensor(value)):
        raise Diverged(
            f"{what} is {value}; lower the learning rate, compute in fp32 (--dtype float32) or check the data."
        )
    return value


def _predicts_in_place(model: nn.Module) -> bool:
    config = getattr(model, "config", None)
    masked = any(
        name.endswith("ForMaskedLM") for name in getattr(config, "architectures", None) or [type(model).__name__]
    )
    return bool(getattr(config, "is_encoder_decoder", False)) or masked
