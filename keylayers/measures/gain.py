"""What training some layers recovers of what training all of them gains."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

PerSeed = Sequence[float] | Float[np.ndarray, " seeds"]


def recovered_gain(before: float, losses: PerSeed, full: PerSeed) -> Float[np.ndarray, " seeds"]:
    """Share of the gain, per seed: (before - loss) / (before - full); 0 for no change, 1 for all that training
    everything gains, above 1 or below 0 where it is better than that or worse than nothing.

    Losses in nats per token: of the untuned model, of an arm, of training everything, the latter two paired by seed.
    """
    return (before - np.asarray(losses)) / (before - np.asarray(full))
