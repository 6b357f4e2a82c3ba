from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keylayers.data.batches import batch_indices, batches, collate, epoch_order, supervised_tokens
from keylayers.data.tokenisation import IGNORED, Examples, TruncationReport
from keylayers.errors import BadInput


def some(lengths: list[int]) -> Examples:
    """Example i holds tokens 10 i + 1, 10 i + 2, ...; its second half is supervised."""
    ids = tuple(tuple(10 * i + 1 + at for at in range(length)) for i, length in enumerate(lengths))
    labels = tuple(tuple(t if at >= len(row) / 2 else IGNORED for at, t in enumerate(row)) for row in ids)
    return Examples(ids, labels, tuple(map(str, range(len(ids)))), 7, TruncationReport(99, len(ids), 0, 0, 0))


def test_collation_pads_on_the_right_and_never_supervises_padding() -> None:
    batch = collate(some([3, 1]))
    assert batch["input_ids"].tolist() == [[1, 2, 3], [11, 7, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 3], [IGNORED] * 3]
    assert collate(some([2, 1]), pad_id=0)["input_ids"][1].tolist() == [11, 0]


def test_padding_with_a_real_token_is_not_supervised_either() -> None:
    batch = collate(some([4, 2]), pad_id=12)  # 12 is example 1's own last token
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert supervised_tokens(batch) == 3


def test_label_of_the_first_position_does_not_count() -> None:
    assert supervised_tokens({"labels": torch.tensor([[5, 6, IGNORED], [IGNORED, IGNORED, 8]])}) == 2


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    size=st.integers(1, 9),
    seed=st.integers(0, 3),
    shuffle=st.booleans(),
    by_length=st.booleans(),
)
def test_one_pass_holds_every_example_once(lengths: Any, size: int, seed: int, shuffle: bool, by_length: bool) -> None:
    settings: dict[str, Any] = {"seed": seed, "shuffle": shuffle, "by_length": by_length}
    made = batches(some(lengths), size, **settings)
    first = sorted(int(row[0]) for batch in made for row in batch["input_ids"])
    assert first == [10 * i + 1 for i in range(len(lengths))]
    assert [len(batch["labels"]) == size for batch in made].count(False) <= 1
    assert sum(map(supervised_tokens, made)) == sum(x != IGNORED for row in some(lengths).labels for x in row[1:])
    again = batches(some(lengths), size, **settings)
    assert all(torch.equal(a[key], b[key]) for a, b in zip(made, again, strict=True) for key in a)


def test_order_is_kept_where_nothing_is_asked_and_changes_with_the_seed() -> None:
    lengths = [5, 1, 4, 2, 3, 6]
    assert batch_indices(lengths, 4, shuffle=False, by_length=False) == [[0, 1, 2, 3], [4, 5]]
    assert batch_indices(lengths, 4, shuffle=False) == [[1, 3, 4, 2], [0, 5]]
    assert batch_indices(lengths * 9, 4, seed=0) != batch_indices(lengths * 9, 4, seed=1)


def test_like_lengths_together_save_padding() -> None:
    lengths = [1 + (i * 37) % 100 for i in range(400)]

    def cells(by_length: bool) -> int:
        return sum(len(some) * max(lengths[i] for i in some) for some in batch_indices(lengths, 8, by_length=by_length))

    assert cells(True) < 1.1 * sum(lengths) < 1.5 * sum(lengths) < cells(False)


def test_shuffled_batches_mix_differently_between_seeds() -> None:
    lengths = [1 + i % 3 for i in range(100)]
    together = [{frozenset(chosen) for chosen in batch_indices(lengths, 5, seed=seed)} for seed in (0, 1)]
    assert len(together[0] & together[1]) < 5


def test_impossible_size() -> None:
    with pytest.raises(BadInput, match="batch size 0"):
        batches(some([1]), 0)


@given(lengths=st.lists(st.integers(1, 30), max_size=40), size=st.integers(1, 9), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_example_once_in_groups_drawn_anew(lengths: Any, size: int, epoch: int) -> None:
    order = epoch_order(lengths, size, seed=1, epoch=epoch)
    assert sorted(order) == list(range(len(lengths)))
    assert order == epoch_order(lengths, size, seed=1, epoch=epoch)


def test_epochs_group_anew_and_favour_no_length_early_late_or_in_the_rest() -> None:
    lengths = list(range(1, 43))
    epochs = [epoch_order(lengths, 4, seed=0, epoch=epoch) for epoch in range(400)]
    together = [{frozenset(order[at : at + 4]) for at in range(0, 40, 4)} for order in epochs[:2]]
    assert len(together[0] & together[1]) <= 1
    for part in (slice(0, 4), slice(20, 24), slice(36, 40), slice(40, 42)):
        mean = sum(lengths[index] for order in epochs for index in order[part]) / (400 * len(epochs[0][part]))
        assert abs(mean - 21.5) < 2.5  # of the numbers 1 to 42; four standard errors of 400 groups of like length
