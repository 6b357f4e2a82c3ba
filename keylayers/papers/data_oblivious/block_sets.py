"""Sets of blocks that are compared at one size: where the representation changes most, least, either end, any."""

from collections.abc import Callable, Collection, Sequence
from itertools import combinations
from math import comb

import numpy as np

from keylayers.errors import BadInput
from keylayers.papers.data_oblivious.plan import Task
from keylayers.studies.desk import Desk
from keylayers.studies.retraining import Sets

CRITICAL, LEAST, FIRST, LAST = "critical", "least critical", "first", "last"
OTHERS, MIXED = "random others", "random sets, critical blocks among them"
"""Of the blocks that are not critical; of all blocks, where the others are too few for two different sets."""

BlockSets = Callable[[int], list[tuple[int, ...]]]
"""Seed -> sets of blocks; what they give is averaged."""


def size_of(share: float, blocks: int) -> int:
    """How many blocks a share is: at least one, and never all. Raises BadInput for a share outside (0, 1)."""
    if not 0 < share < 1 or blocks < 2:
        raise BadInput(f"a share of {share:g} of {blocks} blocks leaves nothing to compare; expected one in (0, 1).")
    return min(max(1, round(share * blocks)), blocks - 1)


def list_block_sets(order: Sequence[int], size: int, draws: int) -> dict[str, BlockSets]:
    """Every set of that size by name; `order` has the most critical block first."""
    # deviates: the paper freezes or trains one set of others; here several random ones, which may hold critical blocks
    # where a set is half of all blocks or more, because then the others are one set at most.
    blocks, critical, others = len(order), tuple(sorted(order[:size])), order[size:]
    name, among = (OTHERS, others) if comb(len(others), size) > 1 else (MIXED, order)

    def always(chosen: Sequence[int]) -> BlockSets:
        return lambda seed: [tuple(sorted(chosen))]

    return {
        CRITICAL: always(critical),
        name: lambda seed: random_blocks(among, size, draws, seed, avoid=critical),
        LEAST: always(order[-size:]),
        FIRST: always(range(size)),
        LAST: always(range(blocks - size, blocks)),
    }


def others_in(names: Collection[str]) -> str:
    """Which of the two random arms is among them."""
    return OTHERS if OTHERS in names else MIXED


def random_blocks(
    among: Sequence[int], size: int, draws: int, seed: int, avoid: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Different random sets of these blocks, none of them `avoid`; fewer than asked for where there are no more.

    Raises:
        BadInput: if there is no other set.
    """
    if comb(len(among), size) < 2:
        raise BadInput(f"there is one set of {size} of {len(among)} blocks, so none to compare it with.")
    source = np.random.default_rng((seed, len(among), size))
    if comb(len(among), size) > 10_000:
        found: dict[tuple[int, ...], None] = {}
        while len(found) < draws:
            one = tuple(sorted(source.choice(among, size, replace=False).tolist()))
            if one != avoid:
                found[one] = None
        return list(found)
    others = [one for one in combinations(sorted(among), size) if one != avoid]
    places = source.permutation(len(others))[:draws]
    return [others[place] for place in places]


def layers_of(desk: Desk, task: Task) -> tuple[list[list[str]], list[str]]:
    """Names of the layers in each block, and of those outside."""
    found = desk.ask(task, "blocks", [{}])[0]
    return found["blocks"], found["outside"]


def trained_sets(sets: BlockSets, blocks: Sequence[Sequence[str]]) -> Sets:
    """Only the layers in the chosen blocks train."""
    return lambda seed: [[name for block in one for name in blocks[block]] for one in sets(seed)]


def frozen_sets(sets: BlockSets, blocks: Sequence[Sequence[str]], outside: Sequence[str]) -> Sets:
    """Everything trains but the layers in the chosen blocks."""

    def rest(frozen: tuple[int, ...]) -> list[str]:
        inside = [name for block, names in enumerate(blocks) if block not in frozen for name in names]
        return [*inside, *outside]

    return lambda seed: [rest(one) for one in sets(seed)]
