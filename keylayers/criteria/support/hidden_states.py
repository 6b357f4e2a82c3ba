"""One batch as it passed through the blocks: hidden states at the positions that count, never at padding."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from keylayers.data.tokenisation import IGNORED
from keylayers.errors import BadInput, Diverged
from keylayers.layers.capturing import Captured
from keylayers.layers.layer import Layer
from keylayers.layers.structure import inner_module, unwrap, walk
from keylayers.measures.objective import Batch

Position = Literal["prompt", "last", "mean", "all"]
"""One row per sequence: the last token of its prompt, its last token, the mean of its tokens. Or all tokens."""
Side = Literal["before", "after"]


def stacks_of(model: nn.Module, blocks: Sequence[Layer]) -> tuple[int, ...]:
    """Of each block the stack it lies in: 1 in the decoder of an encoder-decoder model, else 0."""
    root: Any = inner_module(unwrap(model))
    if not getattr(getattr(root, "config", None), "is_encoder_decoder", False):
        return (0,) * len(blocks)
    decoder = {id(module) for module in root.get_decoder().modules()}
    inside = {node.name for node in walk(model) if id(node.inner) in decoder}
    return tuple(int(layer.name in inside) for layer in blocks)


class HiddenStates:
    """Hidden states of one batch at every block, as (sequences, positions, d_model), and which positions count.

    Counted are the positions of `attention_mask`; in the decoder of an encoder-decoder model those of
    `decoder_attention_mask`, or where a label is supervised. A feature map's positions are its pixels.
    """

    def __init__(self, model: nn.Module, batch: Batch, blocks: Sequence[Layer], captured: Captured) -> None:
        self.batch, self.blocks, self._captured = batch, tuple(blocks), captured
        self._stacks = stacks_of(model, blocks)
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def hidden(self, block: int, side: Side) -> Float[Tensor, "batch places d_model"]:
        """What enters a block, or leaves it, in the precision it has."""
        name = self.blocks[block].name
        held = self._captured.inputs if side == "before" else self._captured.outputs
        if name not in held:
            raise BadInput(f"block {name} never ran, so it has no hidden states; leave it out of the model.")
        tensor = held[name]
        if tensor.ndim == 4:
            tensor = tensor.flatten(2).mT
        if tensor.ndim != 3:
            raise BadInput(
                f"the hidden states of block {name} have shape {tuple(tensor.shape)}; expected (batch, positions, "
                "width), or feature maps of four axes."
            )
        return tensor

    def counted(self, block: int, side: Side = "after") -> Bool[Tensor, "batch places"]:
        """Which positions are no padding, on the device of the block's hidden states."""
        hidden = self.hidden(block, side)
        mask, labels = self.batch.get("attention_mask"), self.batch.get("labels")
        if self._stacks[block]:
            mask = self.batch.get("decoder_attention_mask")
            if mask is None and labels is not None:
                mask = labels != IGNORED
        if mask is None:
            return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if mask.shape != hidden.shape[:2]:
            raise BadInput(
                f"the attention mask has shape {tuple(mask.shape)}, but block {self.blocks[block].name} has "
                f"{tuple(hidden.shape[:2])} positions, so it is not known which are padding."
            )
        return mask.to(hidden.device).bool()

    def rows(self, block: int, side: Side, position: Position) -> Float[Tensor, "rows d_model"]:
        """Hidden states at the positions asked for, at least float32; sequences that are all padding are left out.

        Where one block's output is the next one's input, both are the same tensor.

        Raises:
            Diverged: if one is not finite; names the block. BadInput: where images are asked for their last token.
        """
        hidden = self.hidden(block, side)
        return self.kept(
            ("rows", hidden.data_ptr(), hidden.shape, self._stacks[block], position),
            lambda: self._rows(hidden, block, side, position),
        )

    def kept(self, key: tuple[object, ...], make: Callable[[], Tensor]) -> Tensor:
        """What is made once per batch, for all observers."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _rows(self, hidden: Tensor, block: int, side: Side, position: Position) -> Tensor:
        mask = self.counted(block, side)
        if position == "all":
            rows = hidden if mask.all() else hidden[mask]
            rows = rows.reshape(-1, hidden.shape[-1])
        elif position == "mean":
            some = mask.any(1)
            weights = mask[some].to(_precise(hidden))
            rows = torch.einsum("bs,bsd->bd", weights, hidden[some].to(weights.dtype)) / weights.sum(1)[:, None]
        else:
            some, places = self.ends(block, side, position)
            rows = hidden[some, places]
        return finite_rows(rows.to(_precise(hidden)), self.blocks[block].name)

    def ends(self, block: int, side: Side, position: Position) -> tuple[Tensor, Tensor]:
        """Sequences with a counted position, and in each of them the one place asked for."""
        if not self.batch.keys() & {"input_ids", "inputs_embeds", "attention_mask"}:
            raise BadInput(
                f"position={position!r} asks for a token, and this data has none (images?)",
                "give `settings.position=mean`",
            )
        mask = self.counted(block, side)
        chosen = mask
        labels = self.batch.get("labels")
        if position == "prompt" and labels is not None and labels.shape == mask.shape:
            chosen = _prompt(mask, labels.to(mask.device) != IGNORED, decoder=bool(self._stacks[block]))
        some = mask.any(1).nonzero().flatten()
        order = torch.arange(mask.shape[1], device=mask.device)
        return some, torch.where(chosen[some], order, -1).max(1).values


def _prompt(mask: Tensor, supervised: Tensor, decoder: bool) -> Bool[Tensor, "batch places"]:
    """Counted positions of which the last is the prompt's last; all of a sequence without a prompt.

    In a decoder's stack that is the first position, which has seen the prompt and no token of the answer.
    """
    order = torch.arange(mask.shape[1], device=mask.device)
    first = torch.where(mask, order, mask.shape[1]).min(1, keepdim=True).values
    if decoder:
        return mask & (order == first)
    answered = torch.where(supervised & mask, order, -1).max(1, keepdim=True).values
    prompt = mask & ~supervised & (order < answered)
    alone = (prompt & (order > first)).any(1, keepdim=True)  # the first token is never supervised: it is no prompt
    return torch.where(alone, prompt, mask)


def _precise(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def finite_rows(rows: Tensor, name: str) -> Tensor:
    """The rows themselves. Raises Diverged, naming the block, if one is not finite."""
    if not torch.isfinite(rows.sum()) and not torch.isfinite(rows).all():
        raise Diverged(
            f"the hidden states of block {name} are not finite",
            "compute in fp32 (`dtype=float32`)",
            "check the weights",
        )
    return rows
