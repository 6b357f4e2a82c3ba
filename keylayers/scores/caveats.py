"""What whoever reads a ranking or acts on a selection must know, in words: layers that tie, controls that are none."""

import numpy as np

from keylayers.scores.scores import LayerScores
from keylayers.scores.selection import Selection

MANY = 0.1
"""Share of the layers that have one score, from which on it is said of a ranking."""


def caveats(selection: Selection) -> tuple[str, ...]:
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
    """What makes a ranking less than it seems, a sentence each: scores that are all equal, or of which many are."""
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
