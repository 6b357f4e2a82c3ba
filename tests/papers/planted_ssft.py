"""Figures of a cleansing study that never ran, so that what its claims must say is known."""

import numpy as np

from keylayers.papers.ssft.cells import CLEAN, ORACLE, OWN, FinetuneSchedule
from keylayers.papers.ssft.results import (
    AS_RELEASED,
    CLEAN_SHARE,
    RELEASED_TWIN,
    SUCCESS,
    TWO,
    WHOLE,
    Cleansing,
    Results,
)
from keylayers.papers.ssft.tables import RECOVERED
from tests.papers.little_images import watched

SKIPS, STAGES = ("a.0", "a.1", "b.0"), ("a", "a", "b")


def planted(seeds: int = 5, blend: bool = True, **after: float) -> Results:
    """Victims of two attacks; blend survives everything, and no rule but the clean one blames a skip for it."""
    noise = np.array([0.0, 0.01, -0.01, 0.02, -0.02])
    figures = {"a.0": 0.9, "a.1": 0.3, "b.0": 0.6, "a alone": 0.95, "b alone": 0.9, "a and b alone": 0.9, TWO: 0.2,
               WHOLE: 0.95, AS_RELEASED: 0.4, RELEASED_TWIN: 0.85, **after}  # fmt: skip
    blamed, outcomes = {}, {}
    for attack in ("patch", "blend")[: 1 + blend]:
        for seed in range(seeds):
            known = attack == "patch"
            scores = {ORACLE: [0.1, 0.3, 0.0] if known else None, OWN: [0.0, 0.3, 0.2] if known else None,
                      CLEAN: [0.2, 0.1, 0.0]}  # fmt: skip
            blamed[attack, seed] = {"skips": SKIPS, "scores": scores}
            for place, (key, value) in enumerate(figures.items()):
                if not known and key in (TWO, AS_RELEASED, RELEASED_TWIN, "a and b alone"):
                    continue
                mean = (value if known else 0.99) + noise[(seed + place) % 5] / 10
                share = {
                    SUCCESS: [mean],
                    CLEAN_SHARE: [(0.9 if key == "a.1" else 0.7) + noise[seed] / 100],
                    RECOVERED: [1 - mean],
                }
                before = {SUCCESS: [1.0], CLEAN_SHARE: [0.95], RECOVERED: [0.0]}
                later = {**share, SUCCESS: [mean + noise[seed] / 10 + (0.2 if key == TWO else 0.0)]}
                outcomes[attack, seed, key] = {"attacked": {"before": before, "after": share, "later": later}}
    costs = {(seed, skip): {"before": 0.98, "after": 0.97} for seed in range(seeds) for skip in SKIPS}
    success = {attack: (1.0,) * seeds for attack, _ in blamed}
    return Results(
        Cleansing(watched(seeds), FinetuneSchedule(1, 0.02, 50)), SKIPS, STAGES, success, blamed, outcomes, costs
    )
