"""Do two leagues rank the ways of choosing layers alike, by what each recovers of the gain?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.errors import BadInput
from keylayers.league.entrants import ENTRANTS, KINDS
from keylayers.maths.ranks import Correlation, spearman
from keylayers.measures.gain import recovered_gain
from keylayers.runs import read_json
from keylayers.studies.retraining import ALL

COLUMNS = ("ways of choosing layers", "number", "agreement", "p", "between its seeds, first", "second")

Gains = Mapping[str, Float[np.ndarray, " seeds"]]
"""Way of choosing layers -> share of the gain that it recovers with every seed, the mean over games."""


@dataclass(frozen=True)
class Agreement:
    """Two leagues' order of the ways that both played."""

    ways: tuple[str, ...]
    between: Correlation
    """Spearman's, of the means over seeds; ways are no independent sample, so that its p-value is a rough guide."""
    within: tuple[float, float]
    """The mean Spearman correlation of two seeds of each league: what its own noise leaves of an order."""


def read_gains(path: Path) -> dict[str, Float[np.ndarray, " seeds"]]:
    """What every way recovers in this league; of ways that played all its games.

    Raises:
        BadInput: for a file that is damaged, or holds no league.
    """
    games = read_json(path).get("games")
    try:
        if not games:
            raise KeyError("games")
        ways = [name for name in games[0]["arms"] if name != ALL and all(name in one["arms"] for one in games)]
        return {name: np.mean([_recovered(one, name) for one in games], axis=0) for name in ways}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: expected the figures of `keylayers league`, its league.json, found others.") from error


def _recovered(game: Mapping[str, Any], name: str) -> Float[np.ndarray, " seeds"]:
    losses, full = ([one["test"] for one in game["arms"][arm]["trained"]] for arm in (name, ALL))
    return recovered_gain(game["before"]["test"], losses, full)


def untuned(ways: Sequence[str]) -> tuple[str, ...]:
    """Those that see nothing of a tuning: entrants without a stage 1, and rivals that are drawn, but not those of the
    kinds that midpoint chose."""
    return tuple(name for name in ways if name != KINDS and (name not in ENTRANTS or ENTRANTS[name].share is None))


def compare_leagues(first: Gains, second: Gains, ways: Sequence[str]) -> Agreement:
    """How far two leagues agree on these ways. Raises BadInput for fewer than three, whose order says nothing."""
    if len(ways) < 3:
        raise BadInput(f"the leagues share {len(ways)} ways of choosing layers; expected at least 3 to compare.")
    one, other = (np.array([gains[name] for name in ways]) for gains in (first, second))
    return Agreement(tuple(ways), spearman(one.mean(1), other.mean(1)), (_between_seeds(one), _between_seeds(other)))


def rows(first: Gains, second: Gains) -> list[tuple[str, ...]]:
    """Lines of a table: agreement on all ways that both played, on those that see a tuning, and on those that see none.

    Raises:
        BadInput: if they share fewer than three ways.
    """
    shared = [name for name in first if name in second]
    blind = untuned(shared)
    groups = {
        "all that both played": shared,
        "that see a tuning": [name for name in shared if name not in blind],
        "that see none": blind,
    }
    found = []
    for label, ways in groups.items():
        if len(ways) >= 3 or ways is shared:
            one = compare_leagues(first, second, ways)
            found.append(
                (
                    label, f"{len(ways)}", f"{one.between.value:.2f}", f"{one.between.p_value:.2g}",
                    *(f"{value:.2f}" for value in one.within),
                )
            )  # fmt: skip
    return found


def _between_seeds(gains: Float[np.ndarray, "ways seeds"]) -> float:
    return fmean(spearman(gains[:, i], gains[:, j]).value for i, j in combinations(range(gains.shape[1]), 2))
