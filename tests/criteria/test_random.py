import numpy as np
import torch

from keylayers.criteria.protocol import Evidence
from keylayers.criteria.random import Random, score_random
from keylayers.layers.naming import named_layers
from tests import tiny_models

LAYERS = named_layers(tiny_models.build("llama"), "linear")


def test_the_seed_alone_decides() -> None:
    first = score_random(Evidence(), LAYERS, Random(seed=5))
    np.random.seed(99)
    torch.manual_seed(99)
    np.testing.assert_array_equal(score_random(Evidence(), LAYERS, Random(seed=5)).values, first.values)
    assert not np.array_equal(score_random(Evidence(), LAYERS, Random(seed=6)).values, first.values)
    assert first.provenance.seed == 5


def test_scores_are_uniform_in_the_unit_interval() -> None:
    values = np.concatenate([score_random(Evidence(), LAYERS, Random(seed=seed)).values for seed in range(200)])
    assert (values >= 0).all() and (values < 1).all()
    assert abs(values.mean() - 0.5) < 0.02 and abs(values.var() - 1 / 12) < 0.004
