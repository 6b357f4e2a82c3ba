"""Few rows that hold every pair of values of any two parameters, where the full product would take long."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations, product

import pytest


def pairs(row: Sequence[object]) -> Iterator[tuple]:
    """Any two values of a row, each with the number of its parameter."""
    return combinations(enumerate(row), 2)


def pairwise(*parameters: Sequence) -> list[tuple]:
    """Rows in which every pair of values occurs; greedy, the same every time, not always the fewest."""
    left = dict.fromkeys(pair for row in product(*parameters) for pair in pairs(row))
    rows: list[tuple] = []
    used: Counter = Counter()
    while left:
        row = dict(next(iter(left)))
        for number in (number for number in range(len(parameters)) if number not in row):
            news = {
                value: sum(tuple(sorted([(number, value), held], key=lambda each: each[0])) in left
                           for held in row.items())
                for value in parameters[number]
            }  # fmt: skip
            # among equals the least used, so that none of them stands in most rows
            row[number] = max(news, key=lambda value: (news[value], -used[number, value]))
        rows.append(tuple(row[number] for number in range(len(parameters))))
        used.update(row.items())
        for pair in pairs(rows[-1]):
            left.pop(pair, None)
    return rows


def covering(*parameters: Sequence) -> list:
    """The full product, for `parametrize`: a pairwise covering by default, what is beyond it marked `long`."""
    shown = set(pairwise(*parameters))
    return [pytest.param(*row, marks=[] if row in shown else pytest.mark.long) for row in product(*parameters)]
