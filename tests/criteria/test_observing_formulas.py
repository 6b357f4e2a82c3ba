"""Each criterion of hidden states on a stream that is known, against its formula in numpy; only its own fits."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA

from keylayers import criteria
from keylayers.criteria.angular_distance import AngularDistance
from keylayers.criteria.block_influence import BlockInfluence
from keylayers.criteria.cka_shift import CkaShift
from keylayers.criteria.component_shift import ComponentShift
from keylayers.errors import KeylayersError
from tests.criteria.streams import mixing, passed, rotation, states, stream
from tests.maths.test_cka import table_by_hand

DOINGS = [mixing(0.5, seed=1), mixing(0.2, seed=2), lambda h: h @ rotation(), mixing(1.0, seed=3), mixing(0.3, seed=4)]
HIDDEN = states(16) * torch.tensor([8, 5, 3, 2, 1, 0.5, 0.3, 0.2], dtype=torch.float64)
EVIDENCE, LAYERS = stream(DOINGS, HIDDEN)
STATES = passed(DOINGS, HIDDEN)  # before the first block, and after each
LAST = [one[:, -1] for one in STATES]
OUT = [torch.from_numpy(one) for one in LAST[1:]]


def cosines(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before * after).sum(-1) / np.sqrt((before**2).sum(-1) * (after**2).sum(-1))


def neighbour_means(table: np.ndarray, reach: int, with_itself: bool = False) -> np.ndarray:
    count = len(table)
    near = [[m for m in range(count) if abs(m - at) <= reach and (with_itself or m != at)] for at in range(count)]
    return np.array([table[at, some].mean() for at, some in enumerate(near)])


def canonical(a: np.ndarray, b: np.ndarray, components: int) -> float:
    """Scores on the top components by SVD, then scikit-learn's iterative CCA, as the released code has it."""
    scores = []
    for one in (a, b):
        u, s, _ = np.linalg.svd(one - one.mean(0), full_matrices=False)
        scores.append(u[:, :components] * s[:components])
    x, y = CCA(components, tol=1e-12, max_iter=100_000).fit_transform(*scores)
    return float(np.mean([np.corrcoef(x[:, i], y[:, i])[0, 1] for i in range(components)]))


def component_formula(components: int = 3, reach: int = 1) -> np.ndarray:
    table = np.array([[canonical(a, b, components) for b in LAST[1:]] for a in LAST[1:]])
    return 1 - neighbour_means(table, reach)


def angle_formula(span: int = 1) -> np.ndarray:
    found = [np.arccos(cosines(LAST[at], LAST[at + span])).mean() / np.pi for at in range(len(DOINGS) - span + 1)]
    return np.array([min(found[max(0, b - span + 1) : b + 1]) for b in range(len(DOINGS))])


FORMULAS = {
    "block_influence": lambda: np.array([1 - cosines(a, b).mean() for a, b in pairwise(STATES)]),
    "angular_distance": angle_formula,
    "cka_shift": lambda: 1 - neighbour_means(table_by_hand(OUT, "linear", "unbiased"), 1),
    "component_shift": component_formula,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_its_own_formula_fits_and_no_other(name: str) -> None:
    values = criteria.get(name)(EVIDENCE, LAYERS).values
    assert {one for one, formula in FORMULAS.items() if np.allclose(values, formula(), atol=1e-6)} == {name}


@pytest.mark.parametrize("span", [2, 3, 5])
def test_spans_and_the_span_that_is_removed(span: int) -> None:
    scores = criteria.get("angular_distance")(EVIDENCE, LAYERS, AngularDistance(span=span))
    np.testing.assert_allclose(scores.values, angle_formula(span), atol=1e-9)
    distances = scores.provenance.settings["distances"]
    best = min(distances, key=distances.__getitem__)
    at = [layer.name for layer in LAYERS].index(best)
    lowest = sorted(range(len(LAYERS)), key=lambda block: scores.values[block])[:span]
    assert sorted(lowest) == list(range(at, at + span))


def test_all_tokens_and_means_have_their_own_formulas() -> None:
    found = criteria.get("angular_distance")(EVIDENCE, LAYERS, AngularDistance(position="all")).values
    expected = [np.arccos(cosines(a, b)).mean() / np.pi for a, b in pairwise(STATES)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    means = [one.mean(1) for one in STATES]
    found = criteria.get("block_influence")(EVIDENCE, LAYERS, BlockInfluence(position="mean")).values
    expected = [1 - cosines(a, b).mean() for a, b in pairwise(means)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("estimator", ["biased", "unbiased"])
@pytest.mark.parametrize("window", [3, 5])
def test_settings_of_cka_shift(kernel: str, estimator: str, window: int) -> None:
    def score(variant: str) -> np.ndarray:
        settings = CkaShift(window=window, variant=variant, kernel=kernel, estimator=estimator)
        return criteria.get("cka_shift")(EVIDENCE, LAYERS, settings).values

    table = table_by_hand(OUT, kernel, estimator)
    np.testing.assert_allclose(score("neighbours"), 1 - neighbour_means(table, window // 2), atol=1e-9)
    np.testing.assert_allclose(score("released"), 1 - neighbour_means(table, window // 2, with_itself=True), atol=1e-9)
    both = table_by_hand([torch.from_numpy(LAST[0]), *OUT], kernel, estimator)
    np.testing.assert_allclose(score("input"), 1 - np.diag(both, 1), atol=1e-9)


def test_the_released_mean_hides_change_at_the_ends() -> None:
    """The block itself counts a half at the ends and a third inside: of equal change everywhere, the ends show less."""
    evidence, layers = stream([mixing(0.4, seed=30 + index) for index in range(8)], states(64))
    plain, released = (
        criteria.get("cka_shift")(evidence, layers, CkaShift(variant=v)).values for v in ("neighbours", "released")
    )
    inside = slice(1, -1)
    np.testing.assert_allclose(released[inside], plain[inside] * 2 / 3)  # the same ranking there
    np.testing.assert_allclose(released[[0, -1]], plain[[0, -1]] / 2)  # but not at the ends


def test_the_biased_estimate_of_wide_states_hides_the_change_that_the_unbiased_shows() -> None:
    def replacing(seed: int):
        generator = torch.Generator().manual_seed(seed)
        return lambda hidden: torch.randn(hidden.shape, generator=generator, dtype=hidden.dtype)

    evidence, layers = stream([replacing(1), replacing(2), replacing(3)], states(20, 1, 2000), size=20)
    scores = [
        criteria.get("cka_shift")(evidence, layers, CkaShift(estimator=one)).values for one in ("biased", "unbiased")
    ]
    assert (scores[0] < 0.05).all() and (scores[1] > 0.9).all()


def test_all_tokens_are_compared_in_groups_whatever_the_batches() -> None:
    hidden = states(120, 7)  # 840 tokens: three groups of 256, and 72
    shifts = []
    for size in (5, 40, 120):
        evidence, layers = stream(DOINGS, hidden, size=size)
        shifts.append(criteria.get("cka_shift")(evidence, layers, CkaShift(position="all")).values)
    np.testing.assert_allclose(shifts[1:], [shifts[0]] * 2, atol=1e-12)
    flat = [torch.from_numpy(one.reshape(840, -1)) for one in passed(DOINGS, hidden)[1:]]
    whole = 1 - neighbour_means(table_by_hand(flat, "linear", "unbiased"), 1)
    np.testing.assert_allclose(shifts[0], whole, atol=0.02)


def test_components_and_window_of_component_shift() -> None:
    for components, window in ((1, 3), (2, 5), (3, 5)):
        settings = ComponentShift(components=components, window=window)
        found = criteria.get("component_shift")(EVIDENCE, LAYERS, settings).values
        np.testing.assert_allclose(found, component_formula(components, window // 2), atol=1e-6)


def test_a_block_of_zeros_is_as_far_as_can_be_and_stays_finite() -> None:
    evidence, layers = stream([lambda h: h, lambda h: 0 * h, lambda h: h], states())
    influence = criteria.get("block_influence")(evidence, layers).values
    assert influence.tolist() == [0, 1, 0]
    np.testing.assert_allclose(criteria.get("angular_distance")(evidence, layers).values, [0, 0.5, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("cka_shift", {"window": 4}, "an odd number of blocks"),
        ("cka_shift", {"variant": "neighbors"}, "did you mean 'neighbours'"),
        ("cka_shift", {"position": "all", "estimator": "biased"}, "give `settings.estimator=unbiased`"),
        ("component_shift", {"window": 4}, "an odd number of blocks"),
        ("component_shift", {"components": 15}, "give at least 17 records"),
        ("component_shift", {"position": "all"}, "give `settings.position=prompt`"),
        ("angular_distance", {"span": 6}, "span=6` of angular_distance: expected 1 to 5"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, settings: dict, said: str) -> None:
    criterion = criteria.get(name)
    with pytest.raises(KeylayersError, match=said):
        criterion(EVIDENCE, LAYERS, criterion.settings(**settings))
