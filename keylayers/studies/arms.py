"""The arms of a comparison at one budget: what a ranking chooses, and the controls that any choice must beat."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from keylayers.errors import BadSelection
from keylayers.layers.layer import Layer
from keylayers.scores import LayerScores, Selection, select
from keylayers.scores.groups import averaged
from keylayers.scores.policy_text import SIZES
from keylayers.scores.random_draws import DRAWS, draw_kinds, draw_params
from keylayers.scores.spreading import ties_shuffled


@dataclass(frozen=True)
class Arm:
    """One way of choosing layers, and the sets it chose: one, or its next ones with every seed where it draws."""

    name: str
    choices: tuple[Selection, ...]
    draws: int = 1
    """Sets trained under each seed; what they give is averaged."""

    def choice(self, seed: int, draw: int = 0) -> Selection:
        """The set trained under that seed."""
        return self.choices[(seed * self.draws + draw) % len(self.choices)]

    def names(self, seed: int) -> list[tuple[str, ...]]:
        """The layers of every set trained under that seed."""
        return [self.choice(seed, draw).names for draw in range(self.draws)]


@dataclass(frozen=True)
class Budget:
    """How much may train, the same for every arm."""

    share: float
    """Of all candidates' parameters, in (0, 1)."""
    of: str = "lora"
    """Which parameters count: those LoRA adds, or the layers' own `weights`."""

    def __post_init__(self) -> None:
        if self.of not in SIZES or not 0 < self.share < 1:
            raise BadSelection(
                f"budget {self.share} of {self.of!r}: expected a share in (0, 1) of {' or '.join(SIZES)}."
            )

    def policy(self, by: str = "score") -> str:
        """Down that order, every layer that still fits."""
        return f"params:{100 * self.share:g}%:by={by}:of={self.of}"

    def size(self, selection: Selection) -> int:
        """What a selection spends."""
        return int(sizes(selection.layers, self.of)[selection.mask].sum())


def sizes(layers: Sequence[Layer], of: str) -> Int[np.ndarray, " layers"]:
    """Parameters of each layer: its own, or what LoRA of rank 1 adds."""
    return np.array([layer.lora_size if of == "lora" else layer.size for layer in layers], dtype=np.int64)


def select_within_budget(scores: LayerScores, budget: Budget, by: str = "score") -> Selection:
    """The layers a ranking spends the budget on: `score` down the ranking, `density` by score per parameter, `kinds`
    the best kind whole before the next."""
    return select(scores, budget.policy(by))


def controls(
    scores: LayerScores, budget: Budget, *, draws: int = DRAWS, seed: int = 0, by: str = "score"
) -> Mapping[str, Arm]:
    """What a choice by these scores has to beat, by name, each at the same budget.

    reversed: the least critical. last, first: from either end of the network. depth only, kind only: the ranking of
    block means and of kind means. random: any layers. random, same size: as many parameters, within 2 % where some set
    has them. random, same kinds: as many layers of each kind.
    """
    chosen = select_within_budget(scores, budget, by)
    layers, spent, kinds = scores.layers, budget.size(chosen), [layer.kind for layer in scores.layers]
    counts, seeds, percent = sizes(layers, budget.of), range(seed, seed + draws), f"{100 * budget.share:g}%"

    def of_means(labels: Sequence[str]) -> LayerScores:  # which may all be equal, as blocks' scores are by kind
        return ties_shuffled(averaged(scores, labels), seed)

    found = {
        "reversed": (select_within_budget(scores, budget, "reverse"),),
        "last": (select(layers, budget.policy("last")),),
        "first": (select(layers, budget.policy("first")),),
        "depth only": (select_within_budget(of_means([str(layer.block) for layer in layers]), budget),),
        "kind only": (select_within_budget(of_means(kinds), budget),),
        "random": tuple(select(layers, f"random:params={percent}:of={budget.of}:seed={s}") for s in seeds),
        "random, same size": tuple(
            Selection(layers, draw_params(counts, spent, s), f"random of {spent} parameters, seed {s}")
            for s in (1_000_000 + s for s in seeds)  # else the first fill is that of the plain draw
        ),
        "random, same kinds": tuple(
            Selection(layers, draw_kinds(kinds, chosen.mask, s), f"random of the same kinds, seed {s}") for s in seeds
        ),
    }
    return {name: Arm(name, choices) for name, choices in found.items()}
