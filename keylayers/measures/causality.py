"""Whether a network that should predict the next token sees it: a loss over tokens that are seen measures copying."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from keylayers.errors import BadInput
from keylayers.layers.structure import inner_module, unwrap
from keylayers.measures.loss import evaluating
from keylayers.measures.objective import model_device

_LENGTH = 16
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest movement, relative to the largest logit, that counts as rounding; 2 % in half precision."""


def require_causal(model: nn.Module, texts: Sequence[Sequence[int]]) -> None:
    """Two short forward passes: other tokens later on must not move the logits before them.

    Catches attention to all places whatever a network calls itself: prefix language models, remote code, factories.

    Raises:
        BadInput: if they do.
    """
    tokens = list(chain.from_iterable(texts[:_LENGTH]))
    ids, pool = tokens[:_LENGTH], sorted(set(tokens))
    if len(ids) < 4 or len(pool) < 2:
        return
    half = len(ids) // 2
    other = [*ids[:half], *(pool[(pool.index(token) + 1) % len(pool)] for token in ids[half:])]
    with evaluating(model), torch.no_grad():
        one, two = (_logits(model, row) for row in (ids, other))
    if one is None or two is None:
        return
    moved = float((one[:, :half] - two[:, :half]).abs().max())
    largest = float(one[:, :half].abs().max())
    if moved > _ROUNDING.get(one.dtype, 2e-2) * largest:
        name = type(inner_module(unwrap(model))).__name__
        raise BadInput(
            f"{name} sees later tokens when it predicts earlier ones (other tokens later on move its logits by "
            f"{moved:.2g}), so its loss would measure copying",
            "give a causal language model, or an encoder-decoder or masked one of transformers",
        )


def _logits(model: nn.Module, ids: Sequence[int]) -> Tensor | None:
    """Logits of a row of tokens; None for a network without any for each token."""
    row = torch.tensor([list(ids)], device=model_device(model))
    output = model(input_ids=row, attention_mask=torch.ones_like(row))
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    fits = isinstance(found, Tensor) and found.ndim == 3 and found.shape[1] == len(ids)
    return found if fits else None
