"""Signal share: none in pure noise at any shape, all of a planted signal; and Spectrum's formula beside it."""

import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from keylayers.criteria.protocol import Evidence
from keylayers.criteria.signal_noise import SignalNoise, score_signal_noise, signal_share
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.layer import Layer
from keylayers.layers.naming import named_layers
from keylayers.layers.tensors import TensorSource, tensors_in_memory
from keylayers.maths.spectrum import singular_values
from tests import tiny_models
from tests.criteria.weights import held, layers_of, scrambled

SHAPES = [(128, 128), (100, 120), (64, 192), (32, 256), (256, 32), (8, 400), (2, 300), (1, 64)]


def scores_of(tensors: dict[str, Tensor], variant: str = "corrected") -> np.ndarray:
    """One layer per tensor."""
    return score_signal_noise(Evidence(weights=held(tensors)), layers_of(tensors), SignalNoise(variant)).values  # type: ignore[arg-type]


def fraction_above_spectrums_threshold(matrix: Tensor) -> float:
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    q25, q75 = np.quantile(values, [0.25, 0.75])
    aspect = min(matrix.shape) / max(matrix.shape)
    return float((values > (q75 - q25) / 1.349 * (1 + np.sqrt(aspect))).mean())


@pytest.mark.parametrize("shape", SHAPES)
def test_pure_noise_has_no_signal_at_any_aspect_ratio_or_scale(shape: tuple[int, int]) -> None:
    for scale in (1e-4, 1.0, 50.0):
        shares = [signal_share(singular_values(scale * torch.randn(shape)), shape) for _ in range(10)]
        assert np.mean(shares) < 0.02


def test_where_spectrum_takes_a_quarter_to_all_of_pure_noise_for_signal() -> None:
    """Its threshold is .65 of the edge for square matrices, and below every singular value at 4 : 1."""
    shares = {shape: fraction_above_spectrums_threshold(torch.randn(shape)) for shape in SHAPES[:5]}
    assert shares[128, 128] == pytest.approx(0.24, abs=0.05)
    assert shares[64, 192] > 0.8 and shares[32, 256] == shares[256, 32] == 1.0
    square, wide = torch.randn(128, 128), torch.randn(32, 256)
    assert scores_of({"square": square, "wide": wide}).tolist() == [0, 0]
    ratios = scores_of({"square": square, "wide": wide}, "spectrum")
    assert ratios[1] > 5 * ratios[0] > 0  # nothing but the shape tells them apart


def test_spectrums_numbers_are_those_of_its_released_code() -> None:
    """From `ModelModifier.calculate_snr_for_layer` of QuixiAI/spectrum, run on matrices that need no generator."""
    found = scores_of({"a": scrambled(12, 40), "b": scrambled(24, 24), "c": scrambled(40, 16)}, "spectrum")
    np.testing.assert_allclose(found, [8.888973, 0.3429890, 2.799913], rtol=1e-5)


@pytest.mark.parametrize("shape", [(96, 96), (60, 240), (240, 60)])
def test_planted_signal_is_found_whole(shape: tuple[int, int]) -> None:
    """Five directions well above the noise: what is above the edge is the signal, and the share grows with it."""
    noise = 0.01 * torch.randn(shape)
    left, right = torch.linalg.qr(torch.randn(shape[0], 5)).Q, torch.linalg.qr(torch.randn(shape[1], 5)).Q
    shares = []
    for strength in (1.0, 3.0):
        matrix = noise + strength * left @ right.T
        values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        shares.append(float(scores_of({"w": matrix})[0]))
        assert shares[-1] == pytest.approx(values[:5].sum() / values.sum(), rel=1e-6)
    assert 0.1 < shares[0] < shares[1] < 1


def test_ends_of_the_range_and_ties_are_as_stated() -> None:
    tensors = {
        "zeros": torch.zeros(6, 9),
        "noise": torch.randn(60, 90),
        "low rank": torch.randn(60, 4) @ torch.randn(4, 90),
        "rank one": torch.ones(20, 30),
        "more noise": torch.randn(60, 90),
    }
    found = scores_of(tensors)
    np.testing.assert_allclose(found, [0, 0, 1, 1, 0], atol=1e-6)
    scores = score_signal_noise(Evidence(weights=held(tensors)), layers_of(tensors))
    assert scores.provenance.settings["ties"] >= 2
    assert {layer.name for layer in scores.ranking()[-3:]} == {"zeros", "noise", "more noise"}


def test_transposing_and_scaling_change_nothing() -> None:
    matrix = torch.randn(40, 90) + torch.randn(40, 2) @ torch.randn(2, 90)
    found = scores_of({"a": matrix, "b": matrix.T.contiguous(), "c": 1e3 * matrix})
    np.testing.assert_allclose(found, found[0], rtol=1e-6)
    assert found[0] > 0
    ratios = scores_of({"a": matrix, "c": 10 * matrix}, "spectrum")
    assert ratios[1] == pytest.approx(ratios[0] / 10)  # Spectrum's falls with the norm


def test_a_layer_of_several_matrices_gets_their_mean_by_size() -> None:
    model = tiny_models.build("olmoe")
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            if parameter.ndim > 1:
                parameter.add_(0.05 * (index % 4))
    layers = named_layers(model, "block")
    found = score_signal_noise(Evidence(weights=tensors_in_memory(model)), layers).values
    for layer, value in zip(layers, found, strict=True):
        parts = []
        for name, parameter in model.named_parameters():
            if name in layer.parameters and parameter.ndim > 1:
                for matrix in parameter if parameter.ndim == 3 else [parameter]:
                    share = signal_share(singular_values(matrix.detach()), tuple(matrix.shape))
                    parts.append((share, matrix.numel()))
        shares, sizes = zip(*parts, strict=True)
        assert value == pytest.approx(np.average(shares, weights=sizes)) and 0 < value < 1


@pytest.mark.parametrize("variant", ["corrected", "spectrum"])
def test_what_has_no_number_is_named(variant: str) -> None:
    bad = torch.randn(5, 6)
    bad[2, 3] = torch.nan
    with pytest.raises(BadInput, match=r"w of layer w holds entries that are no finite numbers"):
        scores_of({"w": bad}, variant)
    with pytest.raises(BadInput, match=r"w of layer w is stored quantised \(uint8\)"):
        scores_of({"w": torch.ones(5, 6, dtype=torch.uint8)}, variant)
    with pytest.raises(BadInput, match=r"w of layer w is stored quantised \(float8_e4m3fn\)"):
        scores_of({"w": torch.ones(5, 6).to(torch.float8_e4m3fn)}, variant)
    with pytest.raises(BadInput, match=r"layer norm has no weight matrix"):
        scores_of({"norm": torch.ones(5)}, variant)
    with pytest.raises(BadInput, match=r"a test holds no gone of layer gone"):
        score_signal_noise(
            Evidence(weights=held({})), [Layer("gone", None, "gone", ("gone",), 1)], SignalNoise(variant)
        )  # type: ignore[arg-type]


def test_one_tensor_is_held_at_a_time() -> None:
    alive: set[int] = set()

    def loader(number: int):
        def load() -> Tensor:
            assert not alive, f"{alive} still held when {number} is read"
            made = torch.randn(20, 30)
            alive.add(number)
            weakref.finalize(made, alive.remove, number)
            return made

        return load

    names = [f"w{number}" for number in range(4)]
    layers = [Layer("first", None, "first", ("w0", "w1"), 1200), Layer("second", None, "second", ("w2", "w3"), 1200)]
    source = TensorSource({name: loader(n) for n, name in enumerate(names)}, dict.fromkeys(names, (20, 30)), "a test")
    score_signal_noise(Evidence(weights=source), layers)
    assert not alive


def test_another_variant_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"unknown signal_noise variant 'spectrums'; did you mean 'spectrum'"):
        scores_of({"w": torch.randn(4, 4)}, "spectrums")


def test_zeros_have_no_ratio() -> None:
    with pytest.raises(BadInput, match=r"w of layer w has no such number: all its entries are 0"):
        scores_of({"w": torch.zeros(4, 4)}, "spectrum")
