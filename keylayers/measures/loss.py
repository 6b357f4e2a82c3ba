"""Held-out loss: the negative log-likelihood of each example's supervised tokens, in nats."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from keylayers.data.batches import batch_indices, collate
from keylayers.data.tokenise import IGNORED, Examples
from keylayers.errors import BadInput, Diverged

Batch = Mapping[str, Tensor]

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
    logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq-1"]:
    """Negative log-likelihood of each label by the logits one place before it, in nats; 0 where the label is -100.

    The shift is done here, once. The softmax is in float32 (float64 for float64 logits), only over supervised places.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORED
    precise = torch.float64 if logits.dtype == torch.float64 else torch.float32
    losses = torch.zeros(targets.shape, dtype=precise, device=logits.device)
    chosen = logits[:, :-1][supervised].to(precise)  # (supervised tokens, vocab)
    losses[supervised] = functional.cross_entropy(chosen, targets[supervised], reduction="none")
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
    if not order or not int(torch.cat(tokens).sum()):
        raise BadInput("there is no supervised token to measure a loss on; give records whose completions fit")
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


def model_device(model: nn.Module) -> torch.device:
    """Where a model takes its input: the device of its first parameter."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


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
    device = model_device(model)
    ids, mask, labels = (batch[name].to(device) for name in ("input_ids", "attention_mask", "labels"))
    rows = max(1, _LOGIT_ELEMENTS // max(1, ids.shape[1] * _vocabulary(model)))
    nats = list[Tensor]()
    for some in torch.arange(len(ids), device=device).split(rows):
        output = model(input_ids=ids[some], attention_mask=mask[some], **_without_cache(model))
        losses = token_losses(_logits(output), labels[some])
        nats.append(losses.sum(dim=1, dtype=torch.float64).cpu())
    return torch.cat(nats), (labels[:, 1:] != IGNORED).sum(dim=1).cpu()


def _logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output["logits"] if isinstance(output, dict) else output.logits


def _vocabulary(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    return int(getattr(config, "vocab_size", None) or 1)


def _without_cache(model: nn.Module) -> dict[str, bool]:
    """Switches off the cache of keys and values, which a loss has no use for, where the model knows of one."""
    return {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}


def _require_finite(nats: Tensor, number: int, names: list[str]) -> None:
    bad = (~torch.isfinite(nats)).nonzero().flatten().tolist()
    if bad:
        raise Diverged(
            f"the loss is {nats[bad[0]].item()} in batch {number}, first at record {names[bad[0]] or bad[0]} "
            f"({len(bad)} of {len(names)} records there); the model's weights or the training that made them diverged: "
            f"check the weights for NaN, or repeat the training with a smaller learning rate or in float32"
        )
