"""Overlap laws under stricter nulls than exchangeable layers: same kinds (stratified), same profile over depth."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from keylayers.axes import LayerMask
from keylayers.errors import BadInput
from keylayers.maths.overlap import OverlapLaw, hypergeometric, overlap_law


def stratified_law(a: LayerMask, b: LayerMask, kinds: Sequence[str]) -> OverlapLaw:
    """Law of the overlap if both sets kept their counts per kind and chose at random within each kind.

    Exact: the convolution over kinds t of hypergeometric(n_t, a_t, b_t); E X = sum of a_t b_t / n_t. Two rankings that
    only say "all mlp.down_proj first" agree entirely by this chance.
    """
    _check(a, b, kinds)
    parts = []
    for where in _groups(kinds):
        counts, probabilities = hypergeometric(where.size, int(a[where].sum()), int(b[where].sum()))
        parts.append(np.concatenate([np.zeros(counts[0]), probabilities]))
    return _sum_law(a, b, parts)


def depth_law(a: LayerMask, b: LayerMask, kinds: Sequence[str], blocks: Sequence[int | None]) -> OverlapLaw:
    """Law of the overlap if the second ranking were shifted circularly along the blocks, each kind independently.

    Keeps how smoothly scores run along the depth, which inflates overlap. Exact, not sampled: the overlap is a sum over
    kinds of independent terms, each uniform over that kind's shifts (the identity included), so the law is their
    convolution; its `smallest_p` is the smallest p these two sets could have reached, at least 1 / (product of shifts).
    Layers outside the blocks stay. A kind with several layers per block moves by whole blocks where every block has
    equally many of them, else by single layers.
    """
    _check(a, b, kinds, blocks)
    parts = []
    for where in _groups(kinds):
        inside = [int(i) for i in where if blocks[i] is not None]
        for i in set(where.tolist()).difference(inside):
            parts.append(_point(int(a[i] & b[i])))
        if inside:
            parts.append(_shift_overlaps(a, b, sorted(inside, key=lambda i: blocks[i] or 0), blocks))
    return _sum_law(a, b, parts)


def _shift_overlaps(
    a: LayerMask, b: LayerMask, order: Sequence[int], blocks: Sequence[int | None]
) -> Float[np.ndarray, " x"]:
    """Probability of each overlap 0, 1, ... of one kind over its circular shifts."""
    per_block = np.unique([blocks[i] for i in order], return_counts=True)[1]
    width = int(per_block[0]) if (per_block == per_block[0]).all() else 1
    first, second = (mask[list(order)].reshape(-1, width) for mask in (a, b))
    overlaps = [int((first & np.roll(second, shift, axis=0)).sum()) for shift in range(len(first))]
    return np.bincount(overlaps) / len(first)


def _sum_law(a: LayerMask, b: LayerMask, parts: Iterable[Float[np.ndarray, " x"]]) -> OverlapLaw:
    """Law of the sum of independent counts, each given by the probabilities of 0, 1, ..."""
    law = _point(0)
    for part in parts:
        law = np.convolve(law, part)
    attainable = np.flatnonzero(law)
    return overlap_law(int(a.sum()), int(b.sum()), attainable, law[attainable])


def _point(count: int) -> Float[np.ndarray, " x"]:
    return np.eye(count + 1)[count]


def _groups(kinds: Sequence[str]) -> list[np.ndarray]:
    """Positions of each kind, in order of first appearance."""
    found: dict[str, list[int]] = {}
    for position, kind in enumerate(kinds):
        found.setdefault(kind, []).append(position)
    return [np.array(positions) for positions in found.values()]


def _check(a: LayerMask, b: LayerMask, *labels: Sequence[object]) -> None:
    if a.shape != b.shape or any(len(label) != a.size for label in labels):
        lengths = ", ".join(str(len(part)) for part in (a, b, *labels))
        raise BadInput(f"masks, kinds and blocks must have one entry per layer, but their lengths are {lengths}")
