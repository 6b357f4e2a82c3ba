"""The losses that are differentiated or compared: summed over a batch, with the count that normalises them globally."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from keylayers.data.tokenisation import IGNORED
from keylayers.errors import BadInput, Diverged
from keylayers.layers.structure import inner_module, unwrap
from keylayers.models.families import family_of, has_language_head

Batch = Mapping[str, Any]
"""Inputs of a model by the names its forward takes, and `labels`."""

Loss = Callable[[nn.Module, Batch], tuple[Tensor, int]]
"""(model, batch) -> summed loss in nats (differentiable), number of terms in it."""


def language_loss(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Summed cross-entropy of the supervised tokens, in nats (float64 sum of float32 terms), and their number."""
    losses, _ = supervised_losses(*predictions(model, batch))
    return losses.sum(dtype=torch.float64), len(losses)


def image_loss(model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], int]:
    """Summed cross-entropy of image classes, in nats (float64 sum of float32 terms), and the number of images."""
    moved = on_device(batch, model_device(model))
    logits = logits_of(model(**{key: value for key, value in moved.items() if key != "labels"}))
    losses, _ = supervised_losses(logits, moved["labels"])
    return losses.sum(dtype=torch.float64), len(losses)


def predictions(
    model: nn.Module, batch: Batch
) -> tuple[Float[Tensor, "batch places vocab"], Int[Tensor, "batch places"]]:
    """Logits, and beside them the token each should predict (-100: none), for a batch in Hugging Face's convention.

    Causal models predict the label one place on; encoder-decoder and masked models the one at its own place. The
    model's own loss and its reduction are not used.

    Raises:
        BadInput: if the network predicts no tokens, or sees the ones that it is asked for.
    """
    root: Any = inner_module(unwrap(model))
    config, family = getattr(root, "config", None), family_of(root)
    moved = on_device(batch, model_device(model))
    labels = moved["labels"]
    inputs = {key: value for key, value in moved.items() if key != "labels"}
    if hasattr(config, "use_cache"):
        inputs["use_cache"] = False  # keys and values serve generation; a loss has no use for them
    if family == "encoder-decoder":
        refuse_seen_answers(root, batch)
        inputs["labels"] = labels  # the model shifts them into the decoder's input
    output = model(**inputs)
    if family != "encoder-decoder":  # not before: criteria of hidden states end the pass below the head
        refuse_seen_answers(root, batch)
    logits = _logits_per_token(output, batch["labels"], root)
    if family in ("encoder-decoder", "masked"):
        return logits, labels
    return logits[:, :-1], labels[:, 1:]


def refuse_seen_answers(root: nn.Module, batch: Batch) -> None:
    """Raises BadInput, by name of the network, for labels that it would see among its inputs, or without a head."""
    family, name = family_of(root), type(root).__name__
    ids, labels = batch.get("input_ids"), batch["labels"]
    if not has_language_head(root):
        raise _headless(root)
    if family == "bidirectional":
        raise BadInput(
            f"{name} attends to all places, so it sees every token that it is asked for and its loss would measure "
            "copying",
            "give a causal language model, an encoder-decoder, or a masked one (...ForMaskedLM)",
        )
    if family == "causal" or ids is None or ids.shape != labels.shape:
        return
    kept = labels != IGNORED
    seen = bool((ids.to(labels.device) == labels)[kept].all())
    if family == "masked" and seen and kept.any():
        raise BadInput(
            f"{name} sees all tokens that it is asked for, since none is masked; make its examples with "
            "keylayers.data.fitting.fitted, or give a causal language model."
        )
    if family == "encoder-decoder" and seen and not kept[:, 0].any():
        raise BadInput(
            f"{name} would read prompt and answer in its encoder, and copy; make its examples with "
            "keylayers.data.fitting.fitted, which gives the encoder the prompt and asks the decoder for the answer."
        )


def _logits_per_token(output: Any, labels: Tensor, root: nn.Module) -> Tensor:
    """The logits. Raises BadInput unless there is a row over a vocabulary for every label."""
    found = output if isinstance(output, Tensor) else output.get("logits") if isinstance(output, dict) else None
    found = getattr(output, "logits", None) if found is None else found
    if not isinstance(found, Tensor) or found.ndim != 3 or found.shape[:2] != labels.shape:
        raise _headless(root)
    if found.shape[-1] <= int(labels.max()):
        raise _headless(root)
    return found


def _headless(root: nn.Module) -> BadInput:
    return BadInput(
        f"{type(root).__name__} gives no logits over a vocabulary for each token, so it has no loss on text: give the "
        "checkpoint with its language head (...ForCausalLM), or a criterion of weights or hidden states alone, such as "
        "spectral_exponent or block_influence."
    )


def supervised_losses(
    logits: Float[Tensor, "*places vocab"], targets: Int[Tensor, "*places"]
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, "*places"]]:
    """Negative log-likelihood of each supervised target, in nats, and which places those are.

    The softmax is in float32 (float64 for float64 logits), only over supervised places.
    """
    targets = targets.to(logits.device)
    kept = targets != IGNORED
    precise = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return cross_entropy(logits[kept].to(precise), targets[kept], reduction="none"), kept


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returns: the tensor itself, an entry of a dict, or an attribute."""
    return output if isinstance(output, Tensor) else output["logits"] if isinstance(output, dict) else output.logits


def model_device(model: nn.Module) -> torch.device:
    """Where a model takes its input: the device of its first parameter."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def on_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The batch with its tensors there."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def supervised(count: int) -> int:
    """The count itself. Raises BadInput if there is nothing to learn from."""
    if count == 0:
        raise BadInput(
            "the data has no supervised token: every label is masked; give records whose completions fit the context."
        )
    return count


def finite(value: float, what: str) -> float:
    """The value itself. Raises Diverged if it is NaN or infinite."""
    if not math.isfinite(value):
        raise Diverged(
            f"{what} is {value}",
            "compute in fp32 (`dtype=float32`)",
            "lower the learning rate that led there, or check the data",
        )
    return value
