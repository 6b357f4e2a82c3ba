"""What a network makes of each image or text at its layers, one row of features per record, and the class it predicts.

The class of a record of a batch is under `classes`, else under `labels` where there is one label per record.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from keylayers.data.tokenisation import IGNORED
from keylayers.errors import BadInput, Diverged, UnknownName
from keylayers.layers.capturing import capture
from keylayers.layers.structure import inner_module, unwrap
from keylayers.measures.objective import Batch, logits_of, model_device, on_device

Position = Literal["auto", "flat", "prompt", "last", "mean"]
"""Which features: all of them (`flat`), those of the last token of the prompt, of the last token, or the mean over
tokens or pixels; `auto` takes `flat` for images and `prompt` for texts."""

Predict = Callable[[Batch, Tensor], Tensor]
"""(batch, the network's logits) -> one class per record, from 0."""

ANSWERS = ("labels", "classes")
TEXT = ("input_ids", "inputs_embeds", "attention_mask")


def check_position(position: str) -> None:
    """Raises UnknownName unless there is such a position."""
    if position not in get_args(Position):
        raise UnknownName("position", str(position), get_args(Position))


def inputs_of(batch: Batch) -> dict[str, Any]:
    """The batch without its answers, as a network takes it."""
    return {key: value for key, value in batch.items() if key not in ANSWERS}


def records_in(batch: Batch) -> int:
    """Number of records. Raises BadInput for a batch without a tensor."""
    for value in batch.values():
        if isinstance(value, Tensor) and value.ndim:
            return len(value)
    raise BadInput(f"a batch holds {', '.join(map(str, batch)) or 'nothing'} and no tensor; expected inputs by name.")


def is_text(batch: Batch) -> bool:
    """Whether its records are sequences of tokens."""
    return any(key in batch for key in TEXT)


def classes_of(batch: Batch, count: int | None = None) -> Int[Tensor, " batch"]:
    """The class of each record as the batch says it, on the CPU; `count` is how many classes there are, where known.

    Raises:
        BadInput: if the batch does not say one class per record, or says one that does not exist.
    """
    for key in reversed(ANSWERS):
        held = batch.get(key)
        if held is not None and (key == "classes" or held.ndim == 1):
            return checked_classes(torch.as_tensor(held), records_in(inputs_of(batch)), count, f"batch[{key!r}]")
    raise BadInput("the data says no class; give one class per record as `classes`, or as `labels` of images.")


def checked_classes(classes: Tensor, records: int, count: int | None, what: str) -> Int[Tensor, " batch"]:
    """The classes themselves, on the CPU. Raises BadInput unless they are one whole number per record, in range."""
    if classes.ndim != 1 or len(classes) != records or classes.is_floating_point() or classes.dtype == torch.bool:
        raise BadInput(
            f"{what} is {str(classes.dtype).removeprefix('torch.')} of shape {tuple(classes.shape)}; expected one "
            f"whole number for each of {records} records."
        )
    found = classes.long().cpu()
    bad = ((found < 0) | (found >= count) if count is not None else found < 0).nonzero().flatten()
    if len(bad):
        known = f"0 to {count - 1}" if count is not None else "from 0"
        raise BadInput(
            f"{what} has class {int(found[bad[0]])} for record {int(bad[0])} ({len(bad)} such); classes are numbered "
            f"{known}."
        )
    return found


def features_of(
    model: nn.Module, batch: Batch, layers: Sequence[str], position: str = "auto"
) -> tuple[dict[str, Float[Tensor, "batch d_model"]], Tensor]:
    """One forward pass: a row per record at each layer, and the logits. Put the model in eval mode before.

    Raises:
        UnknownName: for a layer that the model does not have.
        BadInput: if its output has no row per record. Diverged: if features are not finite; names the layer.
    """
    config = getattr(inner_module(unwrap(model)), "config", None)
    inputs = on_device(inputs_of(batch), model_device(model))
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" not in inputs:
        raise BadInput("an encoder-decoder model predicts a class at its first answer; give `decoder_input_ids`.")
    if hasattr(config, "use_cache"):
        inputs["use_cache"] = False
    with capture(model, layers) as seen:
        logits = logits_of(model(**inputs))
    return {name: rows_at(_held(seen.outputs, name), batch, position, name) for name in layers}, logits


def _held(outputs: dict[str, Tensor], name: str) -> Tensor:
    if name not in outputs:
        raise BadInput(f"layer {name} never ran, so it has no features; leave it out.")
    return outputs[name]


def rows_at(hidden: Tensor, batch: Batch, position: str, name: str) -> Float[Tensor, "batch d_model"]:
    """Features of each record in what a layer made of a batch, at least float32.

    Raises:
        BadInput: if there is no row per record, or no such position. Diverged: if one is not finite.
    """
    records, text = records_in(inputs_of(batch)), is_text(batch)
    if hidden.ndim < 2 or len(hidden) != records:
        raise BadInput(
            f"layer {name} returns shape {tuple(hidden.shape)} for {records} records; expected a row for each",
            "take blocks (`granularity=block`)",
        )
    if position == "auto":
        position = "prompt" if text else "flat"
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if hidden.ndim == 2 or (position == "flat" and not text):
        rows = hidden.flatten(1)
    elif not text:
        if position != "mean":
            raise BadInput(
                f"position={position!r} asks for a token, and images have none", "give `settings.position=flat` or mean"
            )
        rows = hidden.flatten(2).mean(2) if hidden.ndim == 4 else hidden.mean(1)
    else:
        rows = _token_rows(hidden, batch, position, name)
    if not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():
        raise Diverged(f"the features of layer {name} are not finite; compute in fp32 or check the weights.")
    return rows


def _token_rows(hidden: Tensor, batch: Batch, position: str, name: str) -> Float[Tensor, "batch d_model"]:
    if hidden.ndim != 3 or position == "flat":
        raise BadInput(
            f"layer {name} returns shape {tuple(hidden.shape)} at position={position!r}; texts have features of shape "
            "(batch, tokens, width)",
            "give `settings.position=prompt`, last or mean",
        )
    if hidden.shape[1] == 1:  # a decoder's first step
        return hidden[:, 0]
    mask = token_mask(batch).to(hidden.device)
    if mask.shape != hidden.shape[:2]:
        raise BadInput(
            f"layer {name} has {hidden.shape[1]} positions where the texts have {mask.shape[1]} tokens, so it is not "
            "known which are padding; choose a layer of the stack that reads the text."
        )
    if position == "mean":
        return torch.einsum("bs,bsd->bd", mask.to(hidden.dtype), hidden) / mask.sum(1, keepdim=True)
    return hidden[torch.arange(len(hidden)), last_places(batch, prompt=position == "prompt").to(hidden.device)]


def token_mask(batch: Batch) -> Bool[Tensor, "batch seq"]:
    """Which places are tokens, not padding. Raises BadInput for a text without any."""
    key = next(key for key in (*reversed(TEXT),) if key in batch)
    held = batch[key]
    mask = held.bool() if key == "attention_mask" else torch.ones(held.shape[:2], dtype=torch.bool, device=held.device)
    if not mask.any(1).all():
        raise BadInput(f"text {int((~mask.any(1)).nonzero()[0])} of a batch is all padding; leave it out.")
    return mask


def last_places(batch: Batch, *, prompt: bool) -> Int[Tensor, " batch"]:
    """Place of the last token of each text; of its prompt, where labels say that an answer follows."""
    mask = token_mask(batch)
    order, labels = torch.arange(mask.shape[1], device=mask.device), batch.get("labels")
    chosen = mask
    if prompt and labels is not None and labels.shape == mask.shape:
        supervised = mask & (labels.to(mask.device) != IGNORED)
        answered = torch.where(supervised, order, -1).max(1, keepdim=True).values
        start = torch.where(mask, order, mask.shape[1]).min(1, keepdim=True).values
        before = mask & ~supervised & (order < answered)
        alone = (before & (order > start)).any(1, keepdim=True)  # the first token is never supervised: it is no prompt
        chosen = torch.where(alone, before, mask)
    return torch.where(chosen, order, -1).max(1).values


def predicted_classes(batch: Batch, logits: Tensor, tokens: Sequence[int] = ()) -> Int[Tensor, " batch"]:
    """The class that a network predicts for each record, on the CPU: of images the largest logit; of texts the place
    in `tokens` of the one that is most likely to come first after the prompt.

    Raises:
        BadInput: for texts without tokens to choose among, or tokens that the vocabulary does not have.
    """
    if logits.ndim == 2 and not tokens:
        return logits.argmax(1).cpu()
    if not tokens:
        raise BadInput(
            "which class a text is predicted to have is not known; give `tokens`, of which the most likely next one "
            "is the class, or a function `predict`."
        )
    if max(tokens) >= logits.shape[-1] or min(tokens) < 0:
        raise BadInput(f"tokens={tuple(tokens)}: the vocabulary has tokens 0 to {logits.shape[-1] - 1}.")
    if logits.ndim == 3:
        places = last_places(batch, prompt=True) if logits.shape[1] > 1 else torch.zeros(len(logits), dtype=torch.long)
        logits = logits[torch.arange(len(logits)), places.to(logits.device)]
    return logits[:, list(tokens)].argmax(1).cpu()
