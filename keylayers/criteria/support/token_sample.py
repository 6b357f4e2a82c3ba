"""A bounded sample of tokens with their hidden states at every block, the same whatever the batches and their order."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt64
from torch import Tensor

from keylayers.criteria.support.hidden_states import HiddenStates, Side
from keylayers.criteria.support.observers import Blocks
from keylayers.errors import BadInput
from keylayers.measures.objective import Batch

State = tuple[int, Side]
"""Block, and whether before or after it."""


class TokenSample:
    """The tokens whose record and place have the smallest hashes; equal records count once.

    Memory: `size` tokens x states x width in float32 on the CPU, per stack.
    """

    def __init__(self, blocks: Blocks, states: Sequence[State], size: int) -> None:
        self.blocks, self.states, self.size = blocks, tuple(states), size
        self._keys = {stack: np.empty(0, dtype=np.uint64) for stack in blocks.stacks}
        self._rows: dict[State, Tensor] = {}

    def observe(self, seen: HiddenStates) -> None:
        """Takes those of a batch that belong to the sample."""
        records = record_keys(seen.batch)
        for stack, held in self._keys.items():
            states = [state for state in self.states if self.blocks.stacks[state[0]] == stack]
            mask = seen.counted(*states[0]).cpu()
            _same_places(seen, states)
            rows, places = (mask.nonzero()[:, axis].numpy() for axis in (0, 1))
            ranks = (mask.cumsum(1) - 1).numpy()[rows, places]  # padding on the left does not move a token
            fresh = _mixed(records[rows], ranks)
            keys, first = np.unique(np.concatenate([held, fresh]), return_index=True)
            keys, first = keys[: self.size], first[: self.size]
            old, new = first[first < len(held)], first[first >= len(held)] - len(held)
            order = np.argsort(np.concatenate([held[old], fresh[new]]))
            self._keys[stack] = keys
            for state in states:
                taken = seen.hidden(*state)[rows[new], places[new]].float().cpu()
                before = self._rows.get(state)
                joined = taken if before is None else torch.cat([before[old], taken])
                self._rows[state] = joined[order]

    def finish(self) -> dict[State, Float[Tensor, "tokens d_model"]]:
        """Hidden states by block and side, the tokens of a stack in the same order everywhere."""
        return self._rows


def _same_places(seen: HiddenStates, states: Sequence[State]) -> None:
    """Raises BadInput, naming a block, unless every state has the same positions."""
    shapes = [seen.hidden(*state).shape[:2] for state in states]
    for state, shape in zip(states, shapes, strict=True):
        if shape != shapes[0]:
            raise BadInput(
                f"block {seen.blocks[state[0]].name} has {shape[1]} positions and another has {shapes[0][1]}; tokens "
                "cannot be followed where a network changes the number of positions between blocks."
            )


def record_keys(batch: Batch) -> UInt64[np.ndarray, " records"]:
    """A hash of each record's own input: its counted tokens, or whatever numbers an input without tokens has."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if ids is None:
        given = [one for key, one in sorted(batch.items()) if key not in ("labels", "attention_mask")]
        texts = [b"".join(one[row].cpu().numpy().tobytes() for one in given) for row in range(len(given[0]))]
    else:
        kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        texts = [row[inside].cpu().numpy().tobytes() for row, inside in zip(ids, kept, strict=True)]
    digests = [hashlib.blake2b(text, digest_size=8).digest() for text in texts]
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)


def _mixed(records: np.ndarray, places: np.ndarray) -> UInt64[np.ndarray, " tokens"]:
    """One key per token from its record's key and its place (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        key = records + (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return key ^ (key >> np.uint64(31))
