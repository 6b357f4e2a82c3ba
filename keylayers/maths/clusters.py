"""Clusters of rows, and how much two clusterings of the same rows tell of each other."""

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float, Int

from keylayers.errors import BadInput


def clustered(
    rows: Float[np.ndarray, "tokens d_model"], clusters: int, *, components: int = 50, restarts: int = 4, seed: int = 0
) -> Int[np.ndarray, " tokens"]:
    """k-means labels of rows, on their first principal components where there are more dimensions (0: on all).

    Rotating or scaling the rows changes nothing but the last digits. k-means++ starts, best of `restarts`.

    Raises:
        BadInput: for fewer rows than clusters, or fewer than two clusters.
    """
    with _same_random_numbers():
        from sklearn.cluster import KMeans  # here: importing it would slow the start of every command
        from sklearn.decomposition import PCA
        from sklearn.exceptions import ConvergenceWarning

    if not 2 <= clusters <= len(rows):
        raise BadInput(f"{clusters} clusters of {len(rows)} tokens: expected 2 to {len(rows)}; give more records.")
    points = rows.astype(np.float64)
    points = points - points.mean(0)
    if 0 < components < min(points.shape):
        points = PCA(components, random_state=seed).fit_transform(points)
    scale = float(np.sqrt(np.square(points).mean()))
    means = KMeans(clusters, n_init=restarts, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows can be fewer places than clusters
        return means.fit_predict(points / scale if scale > 0 else points)


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Puts Python's generator back, from which scikit-learn draws when it is first imported."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def mutual_information(a: Int[np.ndarray, " tokens"], b: Int[np.ndarray, " tokens"], *, adjusted: bool = True) -> float:
    """What two clusterings tell of each other over the mean of their entropies; 1 = the same up to names.

    Normalised: 2 I(a; b) / (H(a) + H(b)), in [0, 1], which grows with the number of clusters also between unrelated
    clusterings. Adjusted: minus its value expected of shuffled labels, over 1 minus it; 0 on average by chance (Vinh,
    Epps and Bailey 2010).
    """
    with _same_random_numbers():
        from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    measure = adjusted_mutual_info_score if adjusted else normalized_mutual_info_score
    return float(measure(a, b, average_method="arithmetic"))
