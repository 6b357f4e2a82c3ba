"""The selection that a report is about: what a run trained, or what its scores would choose."""

import shlex
from dataclasses import dataclass

from keylayers.data.images import of_images
from keylayers.errors import KeylayersError
from keylayers.report.collect import Collected, Ranking, Run
from keylayers.scores import LayerScores, select
from keylayers.scores.tiers import Tiers, split_tiers

DEFAULT_POLICY = "top:30%"
"""What a scoring run, which selects nothing, is shown with."""
CONTROL = "random:30%:match=params"


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
        found = split_tiers(ranking.scores, len(names)) if ranking is not None and names else None
        return Choice(first.policy, names, ranking, found, trained=True)
    if not collected.rankings:
        return None
    ranking = collected.rankings[0]
    names = _names(ranking.scores, DEFAULT_POLICY)
    return Choice(
        DEFAULT_POLICY, names, ranking, split_tiers(ranking.scores, len(names)) if names else None, trained=False
    )


@dataclass(frozen=True)
class Trial:
    """What to type to try a choice that no run trained."""

    why: str
    line: str


def trial(collected: Collected, choice: Choice) -> Trial | None:
    """Texts are tuned on, images hardened on, a skip is cleansed; None where there is nothing to try."""
    run = collected.runs[0]
    if choice.trained or choice.ranking is None or run.command != "score":
        return None
    model, data, weights = (str(run.setting("inputs", name) or "") for name in ("model", "data", "weights"))
    network = ["--model", model, *(["--weights", weights] if weights else [])]
    chosen = ["--scores", str(collected.path / choice.ranking.file), "--select", choice.policy]
    if not of_images(data):
        why = "To see whether training them is enough, beside random layers with as many parameters and all layers:"
        beside = ["--against", CONTROL, "--against", "all", "--seeds", "3"]
        return Trial(why, shlex.join(["keylayers", "tune", *network, "--data", data or "DATA", *chosen, *beside]))
    if choice.ranking.scores.granularity == "skip":
        first = choice.ranking.scores.ranking()[0].name
        why = "To turn the first one down and tune around it, and see what that costs:"
        return Trial(why, shlex.join(["keylayers", "cleanse", *network, "--clean", data, "--skip", first]))
    why = f"To see whether training them under attack is enough; then the same with the policy {CONTROL}:"
    return Trial(why, shlex.join(["keylayers", "harden", *network, "--data", data, *chosen]))


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
