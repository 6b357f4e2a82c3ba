"""The law of noise, against closed forms and against simulated noise."""

import math

import numpy as np
import pytest

from keylayers.maths.marchenko_pastur import TRACY_WIDOM, noise_edge, noise_median, noise_scale


def spectrum(rows: int, columns: int, generator: np.random.Generator, scale: float = 1.0) -> np.ndarray:
    return np.linalg.svd(scale * generator.standard_normal((rows, columns)), compute_uv=False)


@pytest.mark.parametrize(("rows", "columns"), [(400, 400), (300, 400), (150, 600), (60, 900), (9, 3000)])
def test_the_median_is_that_of_simulated_noise(rows: int, columns: int) -> None:
    values = spectrum(rows, columns, np.random.default_rng(0)) ** 2 / columns
    assert noise_median(rows / columns) == pytest.approx(np.median(values), rel=0.03)


def test_the_median_of_the_square_law_solves_its_closed_form() -> None:
    """At aspect 1, s = sqrt(x) has the quarter-circle law: pi F(s) = s sqrt(4 - s^2) / 2 + 2 asin(s / 2) on [0, 2]."""
    s = math.sqrt(noise_median(1.0))
    assert (s * math.sqrt(4 - s * s) / 2 + 2 * math.asin(s / 2)) / math.pi == pytest.approx(0.5, abs=1e-9)


def test_the_median_falls_from_one_as_matrices_get_square() -> None:
    medians = [noise_median(aspect) for aspect in (1e-6, 0.01, 0.1, 0.3, 0.6, 1.0)]
    assert medians[0] == pytest.approx(1, abs=1e-5) and medians == sorted(medians, reverse=True)


@pytest.mark.parametrize(("rows", "columns"), [(200, 200), (800, 200), (50, 1000)])
def test_the_scale_of_noise_is_found_with_and_without_signal(rows: int, columns: int) -> None:
    generator = np.random.default_rng(1)
    noise = 0.02 * generator.standard_normal((rows, columns))
    signal = generator.standard_normal((rows, 3)) @ generator.standard_normal((3, columns))
    for matrix in (noise, noise + signal):
        median = float(np.median(np.linalg.svd(matrix, compute_uv=False)))
        assert noise_scale(median, rows, columns) == pytest.approx(0.02, rel=0.06)


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (30, 120), (200, 40)])
def test_the_edge_is_exceeded_as_often_as_it_says(rows: int, columns: int) -> None:
    generator = np.random.default_rng(2)
    largest = np.array([spectrum(rows, columns, generator, 3.0)[0] for _ in range(1000)])
    for chance, bound in ((0.05, 0.03), (0.01, 0.012)):
        assert (largest > noise_edge(3.0, rows, columns, chance)).mean() == pytest.approx(chance, abs=bound)


def test_the_edge_of_large_matrices_is_the_bulks() -> None:
    for rows, columns in ((10**6, 10**6), (10**5, 10**7)):
        bulk = math.sqrt(rows) + math.sqrt(columns)
        assert noise_edge(1.0, rows, columns) == pytest.approx(bulk, rel=1e-3)
    edges = [noise_edge(1.0, 50, 90, chance) for chance in sorted(TRACY_WIDOM)]
    assert edges == sorted(edges, reverse=True)


def test_neither_side_comes_first_and_one_number_is_never_signal() -> None:
    assert noise_edge(2.0, 30, 70) == noise_edge(2.0, 70, 30)
    assert noise_scale(2.0, 30, 70) == noise_scale(2.0, 70, 30)
    assert noise_edge(1.0, 1, 1) == math.inf
