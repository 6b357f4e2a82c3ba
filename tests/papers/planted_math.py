"""A lab whose models are worth what was planted, so that the study of layers for mathematics must find just that."""

from dataclasses import dataclass, field
from functools import cache

import numpy as np

from keylayers.layers.naming import named_layers
from keylayers.models.loading import load_shape
from keylayers.papers.math_layers.cells import compute
from keylayers.papers.math_layers.plan import Scale, tuning
from keylayers.papers.math_layers.probes import CHAIN, RECALL, STEP
from keylayers.studies.lab import Lab

BASES = ("bundled:llama", "bundled:llama-shallow", "bundled:llama-narrow")


def scale(**changes) -> Scale:
    """Three bases, variants of the deepest and the narrow one, three seeds."""
    return Scale(**{"bases": BASES, "families": (BASES[0], BASES[2]), "tuning": tuning(), "seeds": 3, **changes})


@cache
def blocks(base: str) -> int:
    return len(named_layers(load_shape(base), "block"))


def drawn(*key: object, size: int) -> np.ndarray:
    """Numbers in [0, 1) that the key alone decides."""
    return np.random.default_rng([sum(map(ord, str(one))) for one in key]).random(size)


@dataclass(frozen=True)
class PlantedLab(Lab):
    """Answers without computing. `forged`: a variant's blocks are worth what its base's are, else something of its own;
    `common`: all bases are worth the same by depth; `steps`, `recall`: share lost at a block of worth 1."""

    compute: object = compute
    forged: bool = True
    common: bool = False
    shaped: bool = False
    """Bases of one shape are worth the same, and others are not."""
    right: tuple[float, float] = (0.9, 0.9)
    """Share of steps, and of facts, that the whole model gets right; drops are shares of these."""
    uneven: tuple[str, ...] = ()
    """Kinds of variants that training made worse under the last seed."""
    idle: tuple[str, ...] = ()
    """Kinds of variants that training did not change."""
    steps: float = 0.8
    recall: float = 0.2
    noise: float = 0.02
    elbow: str = "critical"
    asked: list = field(default_factory=list)

    def ask(self, what, asked, label=""):
        self.asked.extend((what, each) for each in asked)
        return [getattr(self, what)(**each) for each in asked]

    def teacher(self, model, tuning):
        return {"file": "variants/teacher", "exact": {"7": 0.9}, "exact_before": {"7": 0.0}, "seconds": 9.0}

    def variant(self, kind, model, seed, tuning, taught_by):
        after = 2.0 if kind in self.idle else 1.0 + seed / 100
        after = 2.5 if kind in self.uneven and seed == 2 else after
        rewards = {"rewards": [seed / 10, seed / 2, seed / 2, 1.0 * seed], "steps": [4, 5]}
        exact = {"exact": {"2": 0.2 * seed, "8": 0.1 * seed}, "exact_before": {"2": 0.0, "8": 0.0}}
        notes = {"rewarded": rewards, "distilled": exact}
        return {
            "file": f"variants/{kind}-{seed}", "cost_before": 2.0, "cost": after, "moved": 0.1, "changed": 0.05,
            "seconds": 3.0, **notes.get(kind, {}),
        }  # fmt: skip

    def worth(self, model, file):
        """Of each block to arithmetic, all different."""
        size = blocks(model)
        if self.common:
            return np.linspace(1, 0.1, size)
        kind = "" if file is None or self.forged else file
        return drawn("worth", model.removesuffix("-again") if self.shaped else model, kind, size=size)

    def profile(self, model, file, seed, seeds, records, clusters, tokens):
        worth = self.worth(model, file)
        size = len(worth)
        of_recall = worth if self.common else drawn("recall", model, size=size)
        found = {}
        known = {STEP: self.right[0], RECALL: self.right[1], CHAIN: 0.9}
        for probe, values, lost in ((STEP, worth, self.steps), (RECALL, of_recall, self.recall), (CHAIN, worth, 1.0)):
            jitter = self.noise * drawn("noise", model, file, seed, probe, size=size)
            found[probe] = {
                "loss": 0.1, "exact": known[probe], "loss_damage": (5 * lost * values + jitter).tolist(),
                "exact_damage": (known[probe] * (lost * values + jitter)).tolist(),
            }  # fmt: skip
        place = int(np.argmax(worth)) if self.elbow == "critical" else int(np.argmin(worth))
        return {
            "probes": found, "lengths": {"3": 10, "4": 30}, "elbow": place, "elbow_confidence": 0.5, "seconds": 2.0,
        }  # fmt: skip
