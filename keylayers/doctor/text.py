"""Gates for language models: the tokenizer fits the embeddings, and padding a batch changes no token's loss."""

import inspect
from typing import Any

import torch
from torch import Tensor

from keylayers.doctor.probe import CheckResult, Inputs, ModelUnderTest, Skipped, difference, failed, output_of, passed
from keylayers.layers.structure import inner_module, unwrap
from keylayers.measures.loss import token_losses


def tokenizer(patient: ModelUnderTest) -> CheckResult:
    """Every token has a row in the embeddings; there is something to pad with; the lengths agree."""
    known, root = patient.loaded.tokenizer, _root(patient)
    if known is None and patient.loaded.no_tokenizer:
        return failed(patient.loaded.no_tokenizer, "mend its files, or copy them again from where the model comes from")
    if known is None:
        raise Skipped("the model comes without a tokenizer")
    rows = root.get_input_embeddings().num_embeddings
    largest = max(len(known) - 1, *known.all_special_ids, 0)
    if largest >= rows:
        return failed(
            f"the tokenizer's largest token id is {largest:,}, but the embeddings have {rows:,} rows",
            "give the tokenizer that this model was trained with, or resize the embeddings "
            "(model.resize_token_embeddings(len(tokenizer))) and train them",
        )
    spare = f", {rows - largest - 1:,} rows unused" if rows > largest + 1 else ""
    pad = "no padding token (the end token serves)" if known.pad_token_id is None else f"pads with {known.pad_token!r}"
    if known.pad_token_id is None and known.eos_token_id is None:
        return failed("the tokenizer has neither a padding nor an end token", "set tokenizer.pad_token")
    reach = known.model_max_length
    told = f"context of {patient.loaded.context:,} tokens"
    if reach > patient.loaded.context and reach < 10**9:
        told += f", though the tokenizer lets {reach:,} through"
    return passed(f"{len(known):,} tokens fit {rows:,} embedding rows{spare}; {pad}; {told}")


def padding(patient: ModelUnderTest) -> CheckResult:
    """A token's loss is the same alone and in a padded batch, padded on the right and on the left."""
    inputs, _ = patient.probe()
    if "input_ids" not in inputs or not _is_causal(patient):
        raise Skipped("no causal language model")
    ids = inputs["input_ids"][:1]
    length = ids.shape[1]
    short = max(2, length // 2)
    alone = _losses(patient, {"input_ids": ids[:, :short]}, slice(0, short))
    worst = {}
    for side in ("right", "left"):
        worst[side] = difference(_losses(patient, *_padded(patient, ids, short, side)), alone)
    if bad := [f"on the {side} by {apart:.1e}" for side, apart in worst.items() if apart > patient.rounding]:
        return failed(
            f"a token's loss alone and in a padded batch differ: padded {' and '.join(bad)}",
            "padding leaks into the attention or the positions: score and tune with batches of one record "
            "(keylayers score --batch-size 1), or mend the mask",
        )
    return passed(
        f"{short - 1} tokens cost the same alone and in a batch padded to {length} "
        f"(on the right to {worst['right']:.0e}, on the left to {worst['left']:.0e})"
    )


def _root(patient: ModelUnderTest) -> Any:
    return inner_module(unwrap(patient.model))


def _is_causal(patient: ModelUnderTest) -> bool:
    name = type(_root(patient)).__name__
    return name.endswith(("ForCausalLM", "LMHeadModel")) or getattr(_root(patient), "_is_causal_lm", False)


def _padded(patient: ModelUnderTest, ids: Tensor, short: int, side: str) -> tuple[Inputs, slice]:
    """A batch of the short and the whole sequence, and where the short one's tokens lie in its row."""
    length = ids.shape[1]
    config = _root(patient).config
    pad = getattr(config, "pad_token_id", None)
    pad = int(ids[0, 0]) if pad is None else int(pad)
    fill, zeros = torch.full((1, length - short), pad), torch.zeros(1, length - short, dtype=torch.long)
    parts, mask = [ids[:, :short], fill], [torch.ones(1, short, dtype=torch.long), zeros]
    if side == "left":
        parts, mask = parts[::-1], mask[::-1]
    masks = torch.cat([torch.cat(mask, 1), torch.ones(1, length, dtype=torch.long)])
    batch: Inputs = {"input_ids": torch.cat([torch.cat(parts, 1), ids]), "attention_mask": masks}
    if side == "left" and "position_ids" in inspect.signature(_root(patient).forward).parameters:
        batch["position_ids"] = (masks.cumsum(1) - 1).clamp_min(0)
    return batch, slice(0, short) if side == "right" else slice(length - short, length)


def _losses(patient: ModelUnderTest, batch: Inputs, where: slice) -> Tensor:
    """Losses of the first row's tokens there, each predicted by the one before it."""
    logits = output_of(patient.model, batch)[:1, where]
    targets = batch["input_ids"][:1, where].to(logits.device)
    return token_losses(logits[:, :-1], targets[:, 1:])
