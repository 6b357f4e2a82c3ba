"""Singular values against a dense SVD, and what their squaring loses."""

import pytest
import torch

from keylayers.maths.spectrum import FLOOR, singular_values


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 5), (48, 48), (30, 1700), (1700, 30), (130, 600)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_equal_a_dense_svd_of_the_stored_numbers(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = (0.02 * torch.randn(shape)).to(dtype)
    found = singular_values(matrix)
    expected = torch.linalg.svdvals(matrix.double())
    assert found.dtype == torch.float64 and found.shape == expected.shape == (min(shape),)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * float(expected[0]))


def test_a_matrix_that_is_a_view_is_read_as_it_is() -> None:
    whole = torch.randn(4, 60, 90)
    torch.testing.assert_close(singular_values(whole[2].T), singular_values(whole[2].clone()), rtol=1e-9, atol=0)


def test_small_values_are_right_down_to_the_floor_and_better_than_those_of_float32() -> None:
    truth = torch.logspace(0, -6, 40, dtype=torch.float64)
    left = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(90, 40, dtype=torch.float64)).Q
    matrix = left @ truth.diag() @ right.T
    error = (singular_values(matrix) - truth).abs()
    assert float(error.max()) < 1e-9
    assert float((error / truth).max()) < 1e-3
    in_single = (torch.linalg.svdvals(matrix.float()).double() - truth).abs()
    assert float(in_single.max()) > 100 * float(error.max())


def test_of_a_matrix_of_low_rank_the_rest_is_below_the_floor() -> None:
    matrix = (torch.randn(200, 5, dtype=torch.float64) @ torch.randn(5, 300, dtype=torch.float64)) * 1e3
    found = singular_values(matrix)
    assert float(found[5]) < FLOOR * float(found[0]) < float(found[4])


def test_zeros_and_entries_that_are_no_numbers() -> None:
    assert singular_values(torch.zeros(3, 4)).tolist() == [0, 0, 0]
    for bad in (float("nan"), float("inf")):
        matrix = torch.ones(3, 4)
        matrix[1, 2] = bad
        assert singular_values(matrix).isnan().all()
