"""The selection that a report is about: what a run trained, or what its scores would choose."""

import shlex
from dataclasses import dataclass

from keylayers.errors import KeylayersError
from keylayers.report.collect import Collected, Ranking, Run
from keylayers.scores import LayerScores, select
from keylayers.scores.tiers import Tiers, tiers

DEFAULT_POLICY = "top:30%"
"""What a scoring run, which selects nothing, is shown with."""


@dataclass(frozen=True)
class Choice:
    """The selection that a report is about."""

    policy: str
    names: tuple[str, ...]
    ranking: Ranking | None
    tiers: Tiers | None
    trained: bool
    """Whether a run trained it; otherwise it is what `top:30%` would take."""


def choose(collected: Collected) -> Choice | None:
    """The selection to show: that of the first arm of a tuning run, else the top 30 % of the first ranking."""
    run, tuning = collected.tuned, collected.tuned.tuning if collected.tuned else None
    if run is not None and tuning is not None:
        first, ranking = tuning.arms[0], _ranking_of(collected, run)
        names = first.chosen[0] if first.chosen else ()
        if not names and ranking is not None:
            names = _names(ranking.scores, first.policy)
        found = tiers(ranking.scores, len(names)) if ranking is not None and names else None
        return Choice(first.policy, names, ranking, found, trained=True)
    if not collected.rankings:
        return None
    ranking = collected.rankings[0]
    names = _names(ranking.scores, DEFAULT_POLICY)
    return Choice(DEFAULT_POLICY, names, ranking, tiers(ranking.scores, len(names)) if names else None, trained=False)


def next_command(collected: Collected, choice: Choice) -> str | None:
    """What to type to try a choice that no run trained, beside random layers; None where there is nothing to try."""
    run = collected.runs[0]
    if choice.trained or choice.ranking is None or run.command != "score":
        return None
    model, data = run.setting("inputs", "model"), run.setting("inputs", "data")
    words = ["keylayers", "tune", "--model", str(model), "--data", str(data)]
    words += ["--scores", str(collected.path / choice.ranking.file), "--select", choice.policy]
    return shlex.join([*words, "--against", "random:30%:match=params", "--against", "all", "--seeds", "3"])


def _ranking_of(collected: Collected, run: Run) -> Ranking | None:
    """The ranking that a tuning run chose its layers by."""
    if run.rankings:
        mine = run.rankings[0].identity
        return next(one for one in collected.rankings if one.identity == mine)
    asked = run.setting("scores")
    return next((one for one in collected.rankings if one.scores.sha256 == asked), None)


def _names(scores: LayerScores, policy: str) -> tuple[str, ...]:
    try:
        return select(scores, policy, allow_total=True).names
    except KeylayersError:
        return ()
