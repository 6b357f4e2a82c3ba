"""Policies under training seeds: a random one draws anew for every seed unless it states its own."""

from collections.abc import Sequence

from keylayers.layers.layer import Layer
from keylayers.scores.policies import select
from keylayers.scores.scores import LayerScores
from keylayers.scores.selection import Selection


def choose(scores: LayerScores | None, layers: Sequence[Layer], policy: str, seed: int) -> Selection:
    """The selection a policy makes; a random policy without a seed of its own takes the training seed's."""
    words = policy.split(":")
    if "random" in words and not any(word.startswith("seed=") for word in words):
        policy = f"{policy}:seed={seed}"
    return select(scores if scores is not None else layers, policy, allow_total=words == ["all"])
