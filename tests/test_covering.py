"""The rows that stand for a full product hold every pair of it."""

from itertools import product

import pytest

from tests.covering import covering, pairs, pairwise


@pytest.mark.parametrize("sizes", [(3,), (3, 2), (2, 2, 2), (4, 3, 2), (5, 4, 3, 2), (2, 3, 3, 6)])
def test_every_pair_occurs_in_few_rows_and_what_is_beyond_is_long(sizes):
    parameters = [[f"{number}{value}" for value in range(size)] for number, size in enumerate(sizes)]
    rows, every = pairwise(*parameters), list(product(*parameters))
    wanted = {pair for row in every for pair in pairs(row)}
    assert {pair for row in rows for pair in pairs(row)} == wanted
    largest = sorted(sizes)[-2:]
    assert len(set(rows)) == len(rows) and set(rows) <= set(every)
    assert len(rows) <= 1.5 * largest[0] * largest[-1]
    marked = covering(*parameters)
    assert [row.values for row in marked] == every
    assert {row.values for row in marked if not row.marks} == set(rows)
