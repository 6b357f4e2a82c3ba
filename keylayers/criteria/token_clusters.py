"""How a block regroups tokens: clusters of their hidden states before and after it, compared by mutual information."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le
from jaxtyping import Float, Int

from keylayers.criteria.protocol import CriterionSettings, Evidence
from keylayers.criteria.support.hidden_states import HiddenStates
from keylayers.criteria.support.observers import Blocks, Observed, observing
from keylayers.criteria.support.token_sample import State, TokenSample
from keylayers.errors import BadInput, Diverged
from keylayers.maths.clusters import clustered, mutual_information
from keylayers.maths.elbow import LEAST, find_elbow
from keylayers.settings import Count, Natural, Seed

Reference = Literal["previous", "first"]
Labels = Int[np.ndarray, " tokens"]


@dataclass(frozen=True)
class TokenClusters(CriterionSettings):
    """Settings of `token_clusters`."""

    clusters: Annotated[int, Ge(2)] = 20
    """k of k-means."""
    reference: Reference = "first"
    """Compared with the clusters of the first block, as Nepal et al. draw them, or with those before the block."""
    adjusted: bool = True
    """Mutual information adjusted for chance; False: the normalised one, which rises with the number of clusters."""
    tokens: Annotated[int, Ge(2), Le(10**7)] = 2000
    """Tokens sampled."""
    components: Natural = 50
    """Principal components clustered; 0: the hidden states as they are."""
    restarts: Count = 4
    """Runs of k-means, of which the best counts."""
    seed: Seed = 0
    """Of k-means."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens < self.clusters:
            raise BadInput(
                f"token_clusters cannot make {self.clusters} clusters of {self.tokens} tokens",
                f"give `settings.tokens={10 * self.clusters}`",
                "ask for fewer clusters (`settings.clusters=2`)",
            )


@observing(settings=TokenClusters)
def score_token_clusters(evidence: Evidence, blocks: Blocks, settings: TokenClusters) -> "Regrouping":
    """Mutual information of token clusters that is lost at a block, at most 1; high = the block regroups tokens.

    After Nepal et al. 2025, whose procedure is not published in full: k-means of the hidden states after each block,
    and the normalised mutual information with the first block's clusters, whose elbow is near critical blocks. `first`
    scores a block by the drop of that curve across it (the first block, with nothing before it on the curve, gets 0),
    which can be negative; the first block's are clustered anew from other starts, so that the curve does not begin at 1
    only because clusters equal themselves. `previous` scores 1 minus the information that the clusters before and after
    share: 0 for an identity. Both curves and the elbow with its confidence are noted in the scores. Memory: `tokens`
    hidden states per block in float32.

    Raises:
        BadInput: for fewer tokens than clusters. Diverged: if hidden states are not finite; names the block.
    """
    # deviates: the paper plots normalised mutual information; here adjusted by default, because with 20 clusters the
    # normalised one of unrelated groupings is not 0.
    return Regrouping(blocks, settings)


class Regrouping:
    """A sample of tokens, clustered at the end."""

    def __init__(self, blocks: Blocks, settings: TokenClusters) -> None:
        self.blocks, self.settings = blocks, settings
        states: list[State] = [(block, "after") for block in range(len(blocks.layers))]
        if settings.reference == "previous":
            states += [(block, "before") for block in range(len(blocks.layers))]
        self.sample = TokenSample(blocks, states, settings.tokens)

    def observe(self, seen: HiddenStates) -> None:
        self.sample.observe(seen)

    def finish(self) -> Observed:
        labels, again = self._labels()
        curves = {
            name: self._curves(labels, again, adjusted)
            for name, adjusted in (("normalised", False), ("adjusted", True))
        }
        chosen = curves["adjusted" if self.settings.adjusted else "normalised"]
        if self.settings.reference == "previous":
            values = 1 - chosen
        else:
            above = [block if block == first else block - 1 for block, first in enumerate(self._first())]
            values = chosen[above] - chosen
        notes: dict[str, Any] = {"curve_" + name: curve.tolist() for name, curve in curves.items()}
        return Observed(values, notes={**notes, **self._elbow(chosen)})

    def _labels(self) -> tuple[dict[State, Labels], dict[State, Labels]]:
        """Clusters of every state; and of the first block's anew, from other starts."""
        settings, labels, again = self.settings, dict[State, Labels](), dict[State, Labels]()
        first = self._first() if settings.reference == "first" else []
        for state, rows in self.sample.finish().items():
            given = rows.numpy()
            if not np.isfinite(given).all():
                raise Diverged(f"the hidden states of block {self.blocks.layers[state[0]].name} are not finite.")
            for kept, seed in ((labels, settings.seed), (again, settings.seed + 1)):
                if kept is labels or state in [(block, "after") for block in first]:
                    kept[state] = clustered(
                        given, settings.clusters, components=settings.components, restarts=settings.restarts, seed=seed
                    )
        return labels, again

    def _first(self) -> list[int]:
        """Of each block the first one of its stack."""
        return [self.blocks.stacks.index(stack) for stack in self.blocks.stacks]

    def _curves(
        self, labels: dict[State, Labels], again: dict[State, Labels], adjusted: bool
    ) -> Float[np.ndarray, " blocks"]:
        """Mutual information of each block's clusters with the reference's."""
        curve = []
        for block, first in enumerate(self._first()):
            other = labels[block, "before"] if self.settings.reference == "previous" else again[first, "after"]
            curve.append(mutual_information(labels[block, "after"], other, adjusted=adjusted))
        return np.array(curve)

    def _elbow(self, curve: Float[np.ndarray, " blocks"]) -> dict[str, Any]:
        """The change point of the first stack's curve, where it is long enough to have one."""
        own = curve[: self.blocks.stacks.count(self.blocks.stacks[0])]
        if len(own) < LEAST:
            return {}
        found = find_elbow(own)
        return {"elbow": self.blocks.layers[found.place].name, "elbow_confidence": found.confidence}
