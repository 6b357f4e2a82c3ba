"""CKA against its definitions, its invariances, and independence, where the biased estimator fails."""

import numpy as np
import pytest
import torch

from keylayers.errors import BadInput, UnknownName
from keylayers.maths.cka import MinibatchCka, cka_table, measure_cka

ESTIMATORS = ("biased", "unbiased")
KERNELS = ("linear", "rbf")


def samples(n: int = 20, widths: tuple[int, ...] = (7, 30, 12), seed: int = 0) -> list[torch.Tensor]:
    """Representations of the same samples that share something, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return [
        common @ torch.randn(3, width, generator=generator, dtype=torch.float64)
        + 0.5 * torch.randn(n, width, generator=generator, dtype=torch.float64)
        + 5
        for width in widths
    ]


def gram_by_hand(x: np.ndarray, kernel: str) -> np.ndarray:
    if kernel == "linear":
        return x @ x.T
    squares = np.array([[((a - b) ** 2).sum() for b in x] for a in x])
    return np.exp(-squares / (2 * np.median(squares[squares != 0])))


def hsic_by_hand(k: np.ndarray, m: np.ndarray, estimator: str) -> float:
    """tr(K H M H), or Song et al. 2012, Eq. 5, as they are written."""
    n = len(k)
    ones = np.ones(n)
    if estimator == "biased":
        h = np.eye(n) - 1 / n
        return np.trace(k @ h @ m @ h)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    terms = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones @ k @ m @ ones)
    return (np.trace(k @ m) + terms) / (n * (n - 3))


def table_by_hand(representations: list[torch.Tensor], kernel: str, estimator: str) -> np.ndarray:
    made = [gram_by_hand(one.double().numpy(), kernel) for one in representations]
    hsic = np.array([[hsic_by_hand(k, m, estimator) for m in made] for k in made])
    return hsic / np.sqrt(np.outer(np.diag(hsic), np.diag(hsic)))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_equals_the_definition(kernel: str, estimator: str) -> None:
    given = samples()
    found = cka_table(given, kernel=kernel, estimator=estimator)
    np.testing.assert_allclose(found, table_by_hand(given, kernel, estimator), atol=1e-10)
    single = cka_table([one.float() for one in given], kernel=kernel, estimator=estimator)
    np.testing.assert_allclose(single, found, atol=1e-6)
    assert measure_cka(given[0], given[2], kernel=kernel, estimator=estimator) == pytest.approx(float(found[0, 2]))
    np.testing.assert_allclose(np.diag(found), 1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_narrow_representations_go_another_way_to_the_same_table(
    estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from keylayers.maths import cka as module

    given = samples(200, (4, 3, 6))
    monkeypatch.setattr(module, "grams", lambda *args, **options: pytest.fail("made Gram matrices"))
    found = cka_table(given, estimator=estimator)
    np.testing.assert_allclose(found, table_by_hand(given, "linear", estimator), atol=1e-10)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_rotation_scale_shift_and_order_change_nothing(kernel: str, estimator: str) -> None:
    x, y, _ = samples()
    rotation = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64))[0]
    expected = measure_cka(x, y, kernel=kernel, estimator=estimator)
    assert measure_cka(x, 3.7 * y @ rotation + 100, kernel=kernel, estimator=estimator) == pytest.approx(
        expected, abs=1e-9
    )
    order = torch.randperm(len(x))
    assert measure_cka(x[order], y[order], kernel=kernel, estimator=estimator) == pytest.approx(expected, abs=1e-12)
    stretch = torch.linspace(0.1, 8, 30, dtype=torch.float64)  # not isotropic: this does change it
    assert abs(measure_cka(x, y * stretch, kernel=kernel, estimator=estimator) - expected) > 1e-3


def test_of_independent_wide_representations_the_biased_is_near_1_and_the_unbiased_near_0() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, 5000, generator=generator) for _ in range(2))
    assert measure_cka(x, y, estimator="biased") > 0.97
    assert abs(measure_cka(x, y, estimator="unbiased")) < 0.05
    streamed = MinibatchCka()
    for part in range(0, 50, 10):
        streamed.add([x[part : part + 10], y[part : part + 10]])
    assert abs(float(streamed.table()[0, 1])) < 0.1


@pytest.mark.parametrize("kernel", KERNELS)
def test_groups_are_averaged_before_they_are_normalised(kernel: str) -> None:
    given = samples(60)
    streamed = MinibatchCka(kernel=kernel)
    sizes = [25, 15, 20]
    hsic = np.zeros((3, 3))
    for part, size in zip(torch.arange(60).split(sizes), sizes, strict=True):
        streamed.add([one[part] for one in given])
        made = [gram_by_hand(one[part].numpy(), kernel) for one in given]
        hsic += size * np.array([[hsic_by_hand(k, m, "unbiased") for m in made] for k in made])
    np.testing.assert_allclose(streamed.table(), hsic / np.sqrt(np.outer(np.diag(hsic), np.diag(hsic))), atol=1e-10)


def test_one_group_of_all_samples_is_the_whole_table() -> None:
    given = samples()
    streamed = MinibatchCka()
    streamed.add(given)
    np.testing.assert_allclose(streamed.table(), cka_table(given, estimator="unbiased"), atol=1e-12)


def test_many_small_groups_estimate_the_whole() -> None:
    given = samples(4000, (5, 6))
    streamed = MinibatchCka()
    for part in torch.arange(4000).split(40):
        streamed.add([one[part] for one in given])
    assert float(streamed.table()[0, 1]) == pytest.approx(measure_cka(*given, estimator="unbiased"), abs=0.02)


def test_what_cannot_be_compared_is_refused() -> None:
    x, y, _ = samples()
    with pytest.raises(BadInput, match=r"the same samples, got \[5, 20\]"):
        cka_table([x, y[:5]])
    with pytest.raises(BadInput, match="unbiased CKA needs at least 4 samples, got 3"):
        cka_table([x[:3], y[:3]], estimator="unbiased")
    with pytest.raises(UnknownName, match="unbiased"):
        cka_table([x, y], estimator="unbaised")
    with pytest.raises(UnknownName, match="rbf"):
        cka_table([x, y], kernel="rfb")
    with pytest.raises(BadInput, match="no group"):
        MinibatchCka().table()
    for estimator in ESTIMATORS:
        for many in (1, 200):  # by Gram matrices, and by features
            same = torch.full((20 * many, 3), 0.1)
            other = torch.randn(20 * many, 3)
            with pytest.raises(BadInput, match="representation 1 is the same for all samples"):
                cka_table([other, same], estimator=estimator)
    with pytest.raises(BadInput, match="the same for all samples"):
        cka_table([x, torch.ones(20, 3)], kernel="rbf")
