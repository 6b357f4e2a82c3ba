"""Exponents of values drawn from power laws, and of values placed so that the formula can be written out."""

import math

import numpy as np
import pytest
import torch

from keylayers.maths.power_law import best_power_law, hill_exponent, most_common


def pareto(alpha: float, count: int, seed: int = 0) -> torch.Tensor:
    """Values of density ~ x^-alpha from 1 up, largest first."""
    drawn = np.random.default_rng(seed).random(count) ** (-1 / (alpha - 1))
    return torch.from_numpy(np.sort(drawn)[::-1].copy())


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.5, 6.0])
@pytest.mark.parametrize("k", [500, 1900])
def test_hill_finds_the_exponent_of_a_power_law_whatever_the_unit(alpha: float, k: int) -> None:
    values = pareto(alpha, 2000)
    assert hill_exponent(values, k) == pytest.approx(alpha, abs=4 * (alpha - 1) / math.sqrt(k))
    assert hill_exponent(1e-5 * values, k) == pytest.approx(hill_exponent(values, k), rel=1e-9)


def test_hill_is_its_formula() -> None:
    values = torch.tensor([16.0, 8.0, 4.0, 2.0])
    ln2 = math.log(2)
    assert hill_exponent(values, 1) == pytest.approx(1 + 1 / ln2)
    assert hill_exponent(values, 2) == pytest.approx(1 + 2 / (3 * ln2))
    assert hill_exponent(values, 3) == pytest.approx(1 + 3 / (6 * ln2))
    assert hill_exponent(values, 4) == math.inf == hill_exponent(torch.ones(9), 3)


def test_the_best_start_is_where_the_tail_begins() -> None:
    """Below 1 the values follow another law; a fit from there on is off."""
    tail, rest = pareto(3.0, 600), torch.from_numpy(np.random.default_rng(5).random(1500))
    values = torch.cat([tail, rest]).sort(descending=True).values
    assert best_power_law(values, 0.5, 2.0) == pytest.approx(3.0, abs=0.3)
    assert best_power_law(values, 0.0, 0.1) < 2
    assert best_power_law(values, 2e9, 3e9) == math.inf


def test_the_most_common_value() -> None:
    values = torch.tensor([100.0, 10.3, 10.2, 10.1, 1.0])
    assert most_common(values, bins=10) == pytest.approx(10 ** (2 * 5 / 10))
