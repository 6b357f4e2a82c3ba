"""What whoever reads a ranking or acts on a selection must know, in words: layers that tie, controls that are none."""

import numpy as np

from keylayers.scores.scores import LayerScores
from keylayers.scores.selection import Selection

COMPLETE = 0.05
"""Largest share of the real drop that scores which add up to it may miss, unsaid."""
MOST_POINTS = 64
"""Points of a path beyond which more of them mend nothing."""
MANY = 0.1
"""Share of the layers that have one score, from which on it is said of a ranking."""


def list_caveats(selection: Selection) -> tuple[str, ...]:
    """What makes a selection less than it seems, a sentence each; none where its policy did what its name says."""
    measured, said = selection.provenance.get("measured", {}), []
    if ties := measured.get("ties"):
        value = "" if ties["score"] is None else f" ({ties['score']:g})"
        said.append(
            f"{selection.policy}: {ties['chosen']} of its {len(selection)} layers tie at the cut; a draw took them "
            f"from {ties['among']} of the same score{value}, so that others would serve as well, or fewer"
        )
    if measured.get("reference") and measured.get("shared_with_reference") == len(selection):
        why = ", as no other layers have these kinds" if measured.get("only_one") else ""
        said.append(
            f"{selection.policy}: this draw has chosen the very layers of {measured['reference']}{why}; it is no "
            "control of them"
        )
    if measured.get("tied_runs", 1) > 1:
        said.append(
            f"{selection.policy}: {measured['tied_runs']} runs of blocks tie, by their sum of scores; the earliest is "
            "taken"
        )
    return tuple(said)


def ranking_caveats(scores: LayerScores) -> tuple[str, ...]:
    """What makes a ranking less than it seems, a sentence each: scores that are all equal, or of which many are; shares
    of a loss drop that do not add up to it."""
    return (*_ties(scores), *_missing_share(scores))


def _ties(scores: LayerScores) -> tuple[str, ...]:
    values, counts = np.unique(scores.values, return_counts=True)
    if len(values) == 1 and len(scores.layers) > 1:
        return (f"all {len(scores.layers)} layers have the same score, {values[0]:g}: they are not ranked",)
    most = int(counts.argmax())
    if counts[most] < max(2, MANY * len(scores.layers)):
        return ()
    return (
        f"{counts[most]} of {len(scores.layers)} layers have the same score, {values[most]:g}; where a choice divides "
        "them, a draw decides",
    )


def _missing_share(scores: LayerScores) -> tuple[str, ...]:
    """Scores that are to sum to the loss drop of tuning, and do not; read off what the criterion noted."""
    noted = scores.provenance.settings
    error = noted.get("completeness_error")
    if not isinstance(error, int | float):
        return ()
    if noted["loss_tuned"] >= noted["loss_base"]:
        return (
            f"tuning did not lower the loss of these records ({noted['loss_base']:.4f} to {noted['loss_tuned']:.4f} "
            "nats per token): the scores are shares of no gain; train longer or at another rate",
        )
    if error <= COMPLETE:
        return ()
    points = noted.get("points", 0)
    return (
        f"the scores miss the real drop by {error:.0%}, more than the {COMPLETE:.0%} up to which they are its shares: "
        "their order may serve, their sizes do not; "
        + (
            f"more points of the path come nearer (`settings.points={max(8, 4 * points)}`)"
            if points < MOST_POINTS
            else f"the loss jumps on the way, where no more than {points} points help; a lower rate of stage 1 may"
        ),
    )
