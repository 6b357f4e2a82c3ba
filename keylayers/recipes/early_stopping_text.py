"""What a stage 1 that may stop early says of itself: at every look, at its end, and in the scores."""

from collections.abc import Mapping
from typing import Any

from keylayers.scores.rank_convergence import Measured, Move, Rule


def look_in_words(answer: Mapping[str, Any], rule: Rule) -> str:
    """What one look saw, on one line."""
    if answer["move"] is None:
        return "first look at the ranking"
    said = "settled, stopping" if answer["stop"] else "near enough" if answer["reached"] else "still moving"
    return f"{_figures(Move.of(answer['move']), rule)}; {said}"


def in_words(found: Mapping[str, Any]) -> str:
    """When and why stage 1 stopped, what it cost to know, and what was cut, as lines of text."""
    rule, stop, steps = Rule(**found["rule"]), found["stopped_after"], found["steps"]
    last = found["curve"][-1]
    if not found["settled"]:
        lines = [f"stage 1 ran all {steps} steps: by then the ranking had not settled"]
        if last["move"] is not None and not (move := Move.of(last["move"])).in_reach:
            ceilings = " and ".join(f"{one.ceiling:.2f}" for one in (move.spearman, move.kuncheva) if not one.in_reach)
            lines.append(
                f"  nor could it: the bound of the ranking with itself is {ceilings}, so it is mostly noise of the "
                "batches; only more calibration records, or a lower `settled`, would have let stage 1 stop"
            )
    elif stop < steps:
        lines = [f"stage 1 stopped after {stop} of {steps} steps: the ranking had settled"]
    else:
        lines = [f"stage 1 ran all {steps} steps: the ranking settled only with the last look"]
    if last["move"] is not None:
        lines.append(f"  from step {last['since']} to {last['step']}: {_figures(Move.of(last['move']), rule)}")
    cost = f"  looking took {found['look_seconds']:.1f} s"
    if stop < steps:
        cost += f" and saved about {found['saved_seconds']:.1f} s of training"
    lines.append(f"{cost}; training took {found['train_seconds']:.1f} s")
    if found["schedule_cut"]:
        lines.append(
            f"  the {found['schedule']} schedule of the learning rate was cut before its end: the adapter serves to "
            "rank layers, not as a tuned model"
        )
    return "\n".join(lines)


def as_provenance(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the scores themselves say of it: what was decided, by which target, and the agreement at every look."""
    kept = ("stopped_after", "steps", "settled", "schedule_cut", "train_seconds", "look_seconds", "saved_seconds")
    moves = {str(one["step"]): one["move"] for one in found["curve"] if one["move"] is not None}
    return {
        **{name: found[name] for name in kept},
        "target": found["rule"]["target"],
        "agreement": {
            step: {index: [round(one["value"], 4), round(one["low"], 4)] for index, one in move.items()}
            for step, move in moves.items()
        },
    }


def _figures(move: Move, rule: Rule) -> str:
    top = f"Kuncheva index of the top {100 * rule.share:g} %"
    return f"{_figure('Spearman', move.spearman)}; {_figure(top, move.kuncheva)}"


def _figure(name: str, one: Measured) -> str:
    why = ", all that it reaches with itself" if one.needed == one.ceiling < one.target else ""
    return (
        f"{name} {one.value:.2f}, at least {one.low:.2f} (needed {one.needed:.2f}{why}; halves of its batches agree "
        f"{one.halves:.2f})"
    )
