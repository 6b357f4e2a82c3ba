"""Tail exponents: planted power laws, the formula, and AlphaLoRA's own search."""

import numpy as np
import pytest
import torch
from torch import Tensor

from keylayers.criteria.protocol import Evidence
from keylayers.criteria.spectral_exponent import SpectralExponent, score_spectral_exponent
from keylayers.errors import BadInput, UnknownName
from tests.criteria.weights import held, layers_of, scrambled


def scores_of(settings: SpectralExponent | None = None, **tensors: Tensor) -> np.ndarray:
    return score_spectral_exponent(Evidence(weights=held(tensors)), layers_of(tensors), settings).values


def with_spectrum(values: np.ndarray, columns: int) -> Tensor:
    """A matrix whose squared singular values are those."""
    left = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, len(values), dtype=torch.float64)).Q
    return left @ torch.from_numpy(values).sqrt().diag() @ right.T


@pytest.mark.parametrize("alpha", [1.8, 3.0, 5.0])
def test_a_planted_exponent_is_found(alpha: float) -> None:
    """Eigenvalues at the quantiles of a power law: no sampling error, whatever the tail's share."""
    places = (np.arange(400) + 0.5) / 400
    matrix = with_spectrum(places ** (-1 / (alpha - 1)), 500)
    for tail in (0.2, 0.5, 0.9):
        assert scores_of(SpectralExponent(tail=tail), w=matrix)[0] == pytest.approx(alpha, rel=0.03)


def test_is_the_formula_of_a_dense_svd_free_of_scale_and_of_transposition() -> None:
    matrix = torch.randn(40, 70)
    x = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
    for tail, k in ((0.5, 20), (0.1, 4), (0.001, 1), (0.999, 39)):
        expected = 1 + k / np.log(x[:k] / x[k]).sum()
        found = scores_of(SpectralExponent(tail=tail), a=matrix, b=100 * matrix, c=matrix.T.contiguous())
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_heavier_tails_score_lower_unless_asked_otherwise() -> None:
    heavy = torch.from_numpy(np.random.default_rng(0).standard_t(1.5, size=(60, 60)))
    found = scores_of(light=torch.randn(60, 60), heavy=heavy)
    assert found[0] > found[1] > 1
    turned = scores_of(SpectralExponent(critical="low"), light=torch.randn(60, 60), heavy=heavy)
    assert turned[0] < turned[1] == -found[1]


def test_alphaloras_numbers_are_those_of_its_released_code() -> None:
    """From `fix_finger` of its expert_number.py, run on matrices that need no generator."""
    released = scores_of(
        SpectralExponent(variant="alphalora"), a=scrambled(12, 40), b=scrambled(24, 24), c=scrambled(40, 16)
    )
    np.testing.assert_allclose(released, [1.731802, 2.038417, 1.708921], rtol=1e-5)
    ours = scores_of(a=scrambled(12, 40), b=scrambled(24, 24), c=scrambled(40, 16))
    assert (np.abs(ours - released) > 0.02).all()


@pytest.mark.parametrize("variant", ["hill", "alphalora"])
def test_what_has_no_exponent_is_named(variant: str) -> None:
    settings = SpectralExponent(variant=variant)  # type: ignore[arg-type]
    for matrix, why in ((torch.randn(1, 9), "allow none"), (torch.eye(7), "allow none"), (torch.zeros(3, 4), "are 0")):
        with pytest.raises(BadInput, match=rf"w of layer w has no such number: .*{why}"):
            scores_of(settings, w=matrix)
    assert np.isfinite(scores_of(settings, w=torch.randn(30, 2) @ torch.randn(2, 30))).all()  # of low rank


@pytest.mark.parametrize(("setting", "near"), [({"variant": "hills"}, "hill"), ({"critical": "hig"}, "high")])
def test_another_word_is_refused(setting: dict[str, str], near: str) -> None:
    with pytest.raises(UnknownName, match=rf"unknown spectral_exponent .*; did you mean '{near}'"):
        scores_of(SpectralExponent(**setting), w=torch.randn(5, 5))  # type: ignore[arg-type]
