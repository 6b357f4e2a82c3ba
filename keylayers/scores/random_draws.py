"""Random sets of layers as controls: of a size, of a parameter budget, or matched to a reference set."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from keylayers.axes import LayerMask

TOLERANCE = 0.02  # of the reference's parameters
RESTARTS = 32
EXHAUSTIVE = 16  # layers up to which every subset can be tried
DRAWS = 5
"""Random sets per control at least."""


def draw_count(n: int, count: int, seed: int) -> LayerMask:
    """A uniformly random set of `count` of n layers."""
    return _mask(n, np.random.default_rng(seed).permutation(n)[:count])


def draw_kinds(kinds: Sequence[str], reference: LayerMask, seed: int) -> LayerMask:
    """A random set with as many layers of each kind as the reference has, uniform within each kind."""
    rng = np.random.default_rng(seed)
    labels = np.array(kinds)
    mask = np.zeros(len(kinds), dtype=np.bool_)
    for kind in dict.fromkeys(kinds):
        where = np.flatnonzero(labels == kind)
        mask[rng.permutation(where)[: int(reference[where].sum())]] = True
    return mask


def draw_budget(sizes: Int[np.ndarray, " layers"], budget: int, seed: int) -> LayerMask:
    """Layers in random order, each taken where it still fits in the budget of parameters; never exceeds it."""
    return fill(sizes, budget, np.random.default_rng(seed).permutation(sizes.size))


def draw_params(sizes: Int[np.ndarray, " layers"], target: int, seed: int) -> LayerMask:
    """A random set whose parameters are as near to `target` as a random fill with repairs gets.

    Layers in random order are taken where they fit; then single additions, removals and swaps of randomly drawn layers
    close the gap while any of them lessens it. Up to 32 orders are tried until the gap is within 2 %; with 16 layers or
    fewer every subset is tried last, so there the 2 % are met whenever they can be.
    """
    rng = np.random.default_rng(seed)
    best, best_gap = np.zeros(sizes.size, dtype=np.bool_), target
    for _ in range(RESTARTS):
        mask = fill(sizes, target, rng.permutation(sizes.size))
        _repair(mask, sizes, target, rng)
        gap = abs(target - int(sizes[mask].sum()))
        if gap <= TOLERANCE * target:
            return mask
        if gap < best_gap:
            best, best_gap = mask, gap
    return best if sizes.size > EXHAUSTIVE else _nearest_subset(sizes, target, rng)


def fill(sizes: Int[np.ndarray, " layers"], budget: int, order: Int[np.ndarray, " layers"]) -> LayerMask:
    """Layers in that order, each taken where it still fits; layers without parameters are not taken."""
    mask = np.zeros(sizes.size, dtype=np.bool_)
    left = budget
    for position, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if 0 < size <= left:
            mask[position] = True
            left -= size
    return mask


def _repair(mask: LayerMask, sizes: Int[np.ndarray, " layers"], target: int, rng: np.random.Generator) -> None:
    """Adds, removes or swaps one layer at a time while that brings the sum strictly nearer; changes `mask`."""
    gap = target - int(sizes[mask].sum())
    while gap:
        entering = np.unique(np.append(sizes[~mask], 0))  # 0: nobody enters, or nobody leaves
        leaving = np.unique(np.append(sizes[mask], 0))
        after = np.abs(gap - entering[:, None] + leaving[None, :])
        if after.min() >= abs(gap):
            return
        into, out = rng.choice(np.argwhere(after == after.min()))
        for size, chosen in ((int(entering[into]), False), (int(leaving[out]), True)):
            if size:
                position = rng.choice(np.flatnonzero((sizes == size) & (mask == chosen)))
                mask[position] = not chosen
        gap = target - int(sizes[mask].sum())


def _nearest_subset(sizes: Int[np.ndarray, " layers"], target: int, rng: np.random.Generator) -> LayerMask:
    """A random subset within the tolerance, or of the nearest where there is none; neither empty nor total."""
    subsets: Bool[np.ndarray, "subsets layers"]
    subsets = (np.arange(1, 2**sizes.size - 1)[:, None] >> np.arange(sizes.size)) % 2 == 1
    gaps = np.abs(subsets @ sizes - target)
    return subsets[rng.choice(np.flatnonzero(gaps <= max(TOLERANCE * target, gaps.min())))]


def _mask(n: int, chosen: Int[np.ndarray, " chosen"]) -> LayerMask:
    mask = np.zeros(n, dtype=np.bool_)
    mask[chosen] = True
    return mask
