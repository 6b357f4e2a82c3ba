"""A seeded random number per layer: the control every criterion is shown beside."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keylayers.criteria.protocol import CriterionSettings, Evidence, criterion, scored
from keylayers.criteria.support.cost import nothing
from keylayers.layers.layer import Layer
from keylayers.scores.scores import LayerScores
from keylayers.settings import Seed


@dataclass(frozen=True)
class Random(CriterionSettings):
    """Settings of `random`."""

    seed: Seed = 0


@criterion(settings=Random, work=nothing)
def score_random(evidence: Evidence, layers: Sequence[Layer], settings: Random) -> LayerScores:
    """A uniform number in [0, 1) per layer, from the seed alone."""
    values = np.random.default_rng(settings.seed).random(len(layers))
    return scored(evidence, layers, values, criterion="random", settings=settings)
