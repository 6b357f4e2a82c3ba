"""Batches: padded tensors of examples of like length, in an order that the seed alone decides."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from keylayers.data.tokenisation import IGNORED, Examples
from keylayers.errors import BadInput

_POOL = 50  # batches' worth of shuffled examples, at most, that are sorted by length together


def collate(examples: Examples, pad_id: int | None = None) -> dict[str, Int[Tensor, "batch seq"]]:
    """`input_ids`, `attention_mask` and `labels`, padded on the right to the longest; padding is never supervised."""
    shape = (len(examples), max(map(len, examples.input_ids)))
    batch = {
        "input_ids": torch.full(shape, examples.pad_id if pad_id is None else pad_id, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full((len(examples), max(map(len, examples.labels))), IGNORED, dtype=torch.long),
    }
    for row, (ids, labels) in enumerate(zip(examples.input_ids, examples.labels, strict=True)):
        batch["input_ids"][row, : len(ids)] = torch.tensor(ids)
        batch["attention_mask"][row, : len(ids)] = 1
        batch["labels"][row, : len(labels)] = torch.tensor(labels)
    return batch


def batches(
    examples: Examples, size: int, *, seed: int = 0, shuffle: bool = True, by_length: bool = True
) -> list[dict[str, Int[Tensor, "batch seq"]]]:
    """One pass over the examples in batches of `size`, the last perhaps smaller; each as `collate` makes it."""
    places = batch_indices(
        [len(ids) for ids in examples.input_ids], size, seed=seed, shuffle=shuffle, by_length=by_length
    )
    return [collate(examples.take(place)) for place in places]


@dataclass(frozen=True)
class Collated(Sequence[dict[str, Tensor]]):
    """`batches` in a fixed order, each collated when it is asked for: of many records few may ever be."""

    examples: Examples
    places: Sequence[Sequence[int]]

    @classmethod
    def of(cls, examples: Examples, size: int) -> "Collated":
        """Batches of that size, like lengths together."""
        return cls(examples, batch_indices([len(ids) for ids in examples.input_ids], size, shuffle=False))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        return collate(self.examples.take(self.places[index]))


def batch_indices(
    lengths: Sequence[int], size: int, *, seed: int = 0, shuffle: bool = True, by_length: bool = True
) -> list[list[int]]:
    """Which examples share a batch: every index once, the same for the same lengths and seed.

    With `by_length`, like lengths go together, which saves padding: over the whole where the order is fixed, within two
    or more pools of at most 50 batches where it is shuffled, so that what is learnt together differs between seeds.
    """
    if size < 1:
        raise BadInput(f"batch size {size}: expected at least 1")
    order = list(range(len(lengths)))
    shuffler = random.Random(seed)
    if shuffle:
        shuffler.shuffle(order)
    if by_length:
        halved = -(-len(order) // (2 * size))  # one pool alone would put the same examples together every time
        pool = size * min(_POOL, halved) if shuffle else len(order)
        pools = [order[at : at + pool] for at in range(0, len(order), max(1, pool))]
        order = [place for some in pools for place in sorted(some, key=lambda place: lengths[place])]
    chosen = [order[at : at + size] for at in range(0, len(order), size)]
    if shuffle:
        shuffler.shuffle(chosen)
    return chosen


def epoch_order(lengths: Sequence[int], size: int, *, seed: int, epoch: int) -> list[int]:
    """An epoch of training: every example once, so that each `size` in a row are of like length.

    Groups and their order are drawn anew by seed and epoch. What fills no whole group is drawn by lot, not by length,
    and comes last.
    """
    order = list(range(len(lengths)))
    drawn = seed * 1_000_003 + epoch
    random.Random(drawn).shuffle(order)
    odd = len(order) % size
    rest, whole = order[:odd], order[odd:]
    groups = batch_indices([lengths[index] for index in whole], size, seed=drawn)
    return [whole[index] for group in groups for index in group] + rest


def supervised_tokens(batch: Mapping[str, Tensor]) -> int:
    """How many tokens a batch's loss is over; the label of position 0 does not count, since nothing predicts it."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())
