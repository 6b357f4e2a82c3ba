"""Held-out loss: the negative log-likelihood of each example's supervised tokens, in nats."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from keylayers.data.batches import batch_indices, collate
from keylayers.data.tokenisation import IGNORED, Examples
from keylayers.errors import Diverged
from keylayers.measures.objective import Batch, predictions, supervised, supervised_losses

_LOGIT_ELEMENTS = 2**26  # logits held at once, 256 MiB in fp32: what bounds the memory of a wide vocabulary


@dataclass(frozen=True, eq=False)
class ExampleLosses:
    """What each example costs the model."""

    nats: Float[np.ndarray, " samples"]
    """Negative log-likelihood summed over the example's supervised tokens; float64."""
    tokens: Int[np.ndarray, " samples"]
    """Number of those tokens."""
    origins: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Loss in nats per supervised token, over all examples together: long answers weigh more than short ones."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return math.exp(self.mean)


def token_losses(
    logits: Float[Tensor, "batch places vocab"], targets: Int[Tensor, "batch places"]
) -> Float[Tensor, "batch places"]:
    """Negative log-likelihood of each target by the logits beside it, in nats; 0 where the target is -100."""
    chosen, kept = supervised_losses(logits, targets)
    losses = torch.zeros(targets.shape, dtype=chosen.dtype, device=logits.device)
    losses[kept] = chosen
    return losses


def example_losses(model: nn.Module, data: Examples | Sequence[Batch], *, batch_size: int = 16) -> ExampleLosses:
    """Each example's summed loss, in the order given, with the model in eval mode and without gradients.

    Independent of the batch size but for rounding. The model returns logits, or an object that has them; its own loss
    and its reduction are not used. Its training flags are left as found.

    Raises:
        Diverged: if a loss is not finite; names the batch and the first such record.
        BadInput: if there is no example, or none has a supervised token.
    """
    nats, tokens, origins = list[Tensor](), list[Tensor](), list[str]()
    order = list[int]()
    with evaluating(model), torch.no_grad():
        for number, (places, names, batch) in enumerate(_numbered(data, batch_size)):
            summed, counted = _batch_losses(model, batch)
            _require_finite(summed, number, names)
            nats.append(summed)
            tokens.append(counted)
            origins += names
            order += places
    supervised(int(torch.cat(tokens).sum()) if order else 0)
    back = np.argsort(order)
    return ExampleLosses(
        torch.cat(nats).numpy()[back], torch.cat(tokens).numpy()[back], tuple(origins[place] for place in back)
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; every module's own training flag is restored, also after an exception."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _numbered(data: Examples | Sequence[Batch], size: int) -> Iterator[tuple[list[int], list[str], Batch]]:
    if isinstance(data, Examples):
        lengths = [len(ids) for ids in data.input_ids]
        for places in batch_indices(lengths, size, shuffle=False):
            some = data.take(places)
            yield places, list(some.origins), collate(some)
        return
    first = 0
    for batch in data:
        places = list(range(first, first + len(batch["input_ids"])))
        first += len(places)
        yield places, [f"example {place}" for place in places], batch


def _batch_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed nats (float64) and supervised tokens per row, some rows at a time where the logits would be too many."""
    count, length = batch["labels"].shape
    rows = max(1, _LOGIT_ELEMENTS // max(1, length * _vocabulary(model)))
    nats, tokens = list[Tensor](), list[Tensor]()
    for some in torch.arange(count).split(rows):
        logits, targets = predictions(model, {key: value[some] for key, value in batch.items()})
        nats.append(token_losses(logits, targets).sum(dim=1, dtype=torch.float64).cpu())
        tokens.append((targets != IGNORED).sum(dim=1).cpu())
    return torch.cat(nats), torch.cat(tokens)


def _vocabulary(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    return int(getattr(config, "vocab_size", None) or 1)


def _require_finite(nats: Tensor, number: int, names: list[str]) -> None:
    bad = (~torch.isfinite(nats)).nonzero().flatten().tolist()
    if bad:
        raise Diverged(
            f"the loss is {nats[bad[0]].item()} in batch {number}, first at record {names[bad[0]] or bad[0]} "
            f"({len(bad)} of {len(names)} records there); the model's weights or the training that made them diverged: "
            f"check the weights for NaN, or repeat the training with a smaller learning rate or in float32"
        )
