"""Token clusters: mutual information by hand, planted regroupings, and a sample that batches do not change."""

import numpy as np
import pytest
import torch

from keylayers.criteria.protocol import Evidence
from keylayers.criteria.support.hidden_states import HiddenStates
from keylayers.criteria.support.observers import Blocks
from keylayers.criteria.support.token_sample import TokenSample
from keylayers.criteria.token_clusters import TokenClusters, score_token_clusters
from keylayers.errors import BadInput, UnknownName
from keylayers.layers.capturing import capture
from keylayers.layers.naming import named_layers
from keylayers.maths.clusters import clustered, mutual_information
from keylayers.measures.objective import language_loss
from tests import tiny_models
from tests.criteria.streams import same, states, stream
from tests.criteria.test_observing import text

A = np.array([0, 0, 0, 1, 1, 2, 2, 2])
B = np.array([1, 1, 0, 0, 0, 2, 2, 0])


def test_mutual_information_equals_a_hand_computation() -> None:
    """p(a): 3/8, 2/8, 3/8; p(b): 4/8, 2/8, 2/8; joint: 1 and 2; 2; 1 and 2 of 8."""
    h_a = -(2 * 3 / 8 * np.log(3 / 8) + 1 / 4 * np.log(1 / 4))
    h_b = -(1 / 2 * np.log(1 / 2) + 2 * 1 / 4 * np.log(1 / 4))
    joint = -(3 * 1 / 4 * np.log(1 / 4) + 2 * 1 / 8 * np.log(1 / 8))
    assert mutual_information(A, B, adjusted=False) == pytest.approx(2 * (h_a + h_b - joint) / (h_a + h_b), abs=1e-12)


def test_adjusting_takes_chance_away() -> None:
    """The expectation over all orders of one side, estimated here by shuffling it."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 20, 200), rng.integers(0, 20, 200)
    assert mutual_information(a, b, adjusted=False) > 0.3 and abs(mutual_information(a, b)) < 0.05
    assert mutual_information(A, (A + 1) % 3) == pytest.approx(1)

    def information(labels: np.ndarray) -> float:
        joint = np.histogram2d(A, labels, bins=3)[0] / 8
        expected = joint.sum(1, keepdims=True) * joint.sum(0)
        return float((joint[joint > 0] * np.log(joint[joint > 0] / expected[joint > 0])).sum())

    entropy = [-(p * np.log(p)).sum() for p in (np.bincount(A) / 8, np.bincount(B) / 8)]
    chance = np.mean([information(rng.permutation(B)) for _ in range(4000)])
    by_hand = (information(B) - chance) / (np.mean(entropy) - chance)
    assert mutual_information(A, B) == pytest.approx(by_hand, abs=0.02)


def test_rotation_and_scale_do_not_change_clusters() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(60, 8)) + 4 * rng.integers(0, 3, (60, 1))
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    for components in (0, 3):
        labels = clustered(rows, 3, components=components)
        assert mutual_information(labels, clustered(7 * rows @ turn + 2, 3, components=components)) == 1


def groups(records: int = 12, positions: int = 6, width: int = 8) -> torch.Tensor:
    """Hidden states in four tight groups on one plane, and in four others on a second, which is fainter."""
    generator = torch.Generator().manual_seed(4)
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    one, other = (torch.randint(0, 4, (records, positions), generator=generator) for _ in range(2))
    noise = torch.randn(records, positions, width, generator=generator, dtype=torch.float64)
    made = 0.05 * noise
    made[..., :2] += 10 * corners[one]
    made[..., 2:4] += corners[other]
    return made


def regrouping(hidden: torch.Tensor) -> torch.Tensor:
    """Puts the faint plane in front."""
    turned = hidden.clone()
    turned[..., :2] /= 100
    turned[..., 2:4] *= 20
    return turned


@pytest.mark.parametrize("reference", ["first", "previous"])
def test_the_block_that_regroups_tokens_is_found(reference: str) -> None:
    doings = [same, same, same, regrouping, same, same, same]
    evidence, layers = stream(doings, groups())
    scores = score_token_clusters(evidence, layers, TokenClusters(clusters=4, reference=reference))
    expected = np.zeros(7)
    expected[3] = 1
    np.testing.assert_allclose(scores.values, expected, atol=0.05)
    if reference == "first":
        assert np.diff(scores.provenance.settings["curve_adjusted"])[2] < -0.9


def test_a_curve_that_bends_names_its_elbow() -> None:
    def blurring(amount: float):
        generator = torch.Generator().manual_seed(int(100 * amount))
        return lambda hidden: hidden + amount * torch.randn(hidden.shape, generator=generator, dtype=hidden.dtype)

    doings = [same] * 5 + [blurring(3 + 0.01 * step) for step in range(5)]
    evidence, layers = stream(doings, groups(40), size=40)  # one batch, so that noise is drawn once
    settings = score_token_clusters(evidence, layers, TokenClusters(clusters=4)).provenance.settings
    assert settings["elbow"] in ("layers.4", "layers.5") and settings["elbow_confidence"] > 0.5


def test_the_sample_is_the_same_whatever_the_batches_and_their_order() -> None:
    model = tiny_models.build("llama").double()
    layers = named_layers(model, "block")
    blocks = Blocks(layers, (0, 0, 0))
    samples = []
    flipped = [{key: value.flip(0) for key, value in batch.items()} for batch in text(3)[::-1]]
    for data in (text(8), text(3), text(2, pad=4), text(3, left=True), flipped, text(4) + text(3)):
        sample = TokenSample(blocks, [(1, "after"), (2, "before")], 30)
        for batch in data:
            with torch.no_grad(), capture(model, layers) as captured:
                language_loss(model, batch)
            sample.observe(HiddenStates(model, batch, layers, captured))
        samples.append(sample.finish()[1, "after"])
        assert torch.equal(samples[-1], sample.finish()[2, "before"])
    assert samples[0].shape == (30, 32)
    for other in samples[1:]:
        torch.testing.assert_close(other, samples[0], rtol=0, atol=1e-6)


def test_scores_are_the_same_whatever_the_batches_and_their_order() -> None:
    model = tiny_models.build("llama").double()
    layers = named_layers(model, "block")
    settings = TokenClusters(clusters=5)
    expected = score_token_clusters(Evidence(model=model, data=text(8)), layers, settings)
    for data in (text(3), text(3)[::-1], text(2, pad=4), text(3, left=True)):
        found = score_token_clusters(Evidence(model=model, data=data), layers, settings)
        np.testing.assert_allclose(found.values, expected.values, atol=1e-12)


def test_encoder_and_decoder_are_each_compared_with_their_own_first_block() -> None:
    model = tiny_models.build("t5")
    layers = named_layers(model, "block")
    data = [{**batch, "input_ids": batch["input_ids"].flip(1)} for batch in text(4)]  # read something else than answers
    scores = score_token_clusters(Evidence(model=model, data=data), layers, TokenClusters(clusters=4))
    curve = scores.provenance.settings["curve_adjusted"]
    assert curve[0] > curve[1] and curve[2] > curve[3]
    np.testing.assert_allclose(scores.values, [0, curve[0] - curve[1], 0, curve[2] - curve[3]], atol=1e-12)


def test_the_curve_begins_where_clustering_anew_does_not_where_clusters_equal_themselves() -> None:
    """In a cloud without groups k-means finds others each time; a block that does nothing still loses nothing."""
    evidence, layers = stream([same, same, same], states(40))
    scores = score_token_clusters(evidence, layers, TokenClusters(restarts=1))
    curve = scores.provenance.settings["curve_adjusted"]
    assert curve[0] < 0.9
    np.testing.assert_allclose(scores.values, 0, atol=1e-12)


def test_the_normalised_information_is_offered_and_differs() -> None:
    evidence, layers = stream([same, regrouping, same], groups())
    both = [score_token_clusters(evidence, layers, TokenClusters(clusters=8, adjusted=one)) for one in (True, False)]
    assert both[0].values[1] > both[1].values[1] + 0.05  # what chance leaves in common is not lost


def test_what_cannot_be_clustered_is_refused() -> None:
    evidence, layers = stream([same, same], groups(2, 3))
    with pytest.raises(BadInput, match="20 clusters of 6 tokens: expected 2 to 6; give more records"):
        score_token_clusters(evidence, layers)
    with pytest.raises(UnknownName, match="did you mean 'previous'"):
        score_token_clusters(evidence, layers, TokenClusters(reference="previus"))
    with pytest.raises(BadInput, match="cannot make 20 clusters of 5 tokens"):
        TokenClusters(tokens=5)
