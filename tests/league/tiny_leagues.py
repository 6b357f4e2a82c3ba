"""Figures of leagues whose ways recover planted shares of the gain."""

from pathlib import Path

from keylayers.runs import write_json
from keylayers.studies.retraining import ALL


def league(place: Path, gains: dict[str, list[float]], games: int = 2) -> Path:
    """Figures of a league whose ways recover these shares: every game starts at 4 nats, and all layers save 2."""

    def losses(shares):
        return {"trained": [{"test": 4.0 - 2.0 * share} for share in shares]}

    seeds = len(next(iter(gains.values())))
    arms = {ALL: losses([1.0] * seeds)} | {name: losses(each) for name, each in gains.items()}
    write_json(place, {"games": [{"before": {"test": 4.0}, "arms": arms}] * games})
    return place


def rising(names: list[str], seeds: int = 3, step: float = 0.02) -> dict[str, list[float]]:
    return {name: [step * place] * seeds for place, name in enumerate(names)}
