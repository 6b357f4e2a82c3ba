"""The axis vocabulary of shape annotations; every jaxtyping string in the package uses these words.

layers    units that receive a score             blocks    residual units of the network
batch     sequences or images in a batch         seq       token positions
d_model   width of the residual stream           d_in      input features of a linear map
d_out     output features of a linear map        rank      rank of a low-rank delta
vocab     entries of the vocabulary              experts   experts of a mixture layer
samples   held-out records                       repeats   seeds, bootstraps or batches behind an interval
points    quadrature nodes on a path             rankings  score sets that are compared
"""

import numpy as np
from jaxtyping import Bool, Float

ScoreVector = Float[np.ndarray, " layers"]
"""One float64 per layer; higher = more critical."""

RepeatedScores = Float[np.ndarray, "repeats layers"]
LayerMask = Bool[np.ndarray, " layers"]

__all__ = ["LayerMask", "RepeatedScores", "ScoreVector"]
