"""All tasks of the ILA study together: which way of choosing layers should be the default, and what it costs."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from keylayers.measures.gain import recovered_gain
from keylayers.papers.ila.study import TaskResults
from keylayers.studies.pages import Claim, Table, claim, difference, plus_minus
from keylayers.studies.retraining import ALL, RANDOM


def gains(result: TaskResults, arm: str, on: str = "test") -> Float[np.ndarray, " seeds"]:
    """Share of the gain of training all layers that an arm recovers on a part of the records, per seed."""
    losses, full = ([one[on] for one in result.retrained[name]] for name in (arm, ALL))
    return recovered_gain(result.before[on], losses, full)


def pool_tasks(results: Sequence[TaskResults], arm: str, on: str = "test") -> Float[np.ndarray, " seeds"]:
    """Per seed, the mean over tasks: what a seed does to all tasks (random sets, initial adapters) is counted once."""
    return np.mean([gains(result, arm, on) for result in results], axis=0)


def common(results: Sequence[TaskResults]) -> list[str]:
    """The arms that every task has, but for that of all layers."""
    first, *rest = results
    return [name for name in first.arms if name != ALL and all(name in one.arms for one in rest)]


def overall(results: Sequence[TaskResults]) -> Table:
    """Every arm over all tasks, the best on calibration records first; test records judge it."""
    arms = sorted(common(results), key=lambda name: -float(pool_tasks(results, name, "calibration").mean()))
    rows = []
    for name in arms:
        test, kinds = pool_tasks(results, name), f"random, kinds of {name}"
        rows.append(
            (
                name,
                f"{pool_tasks(results, name, 'calibration').mean():.3f}",
                plus_minus(test),
                f"{min(gains(one, name).mean() for one in results):.3f}",
                "" if name == RANDOM else difference(test, pool_tasks(results, RANDOM)),
                difference(test, pool_tasks(results, kinds)) if kinds in arms else "",
                _cost(results, name),
            )
        )
    columns = (
        "layers chosen by", "gain, calibration records", "gain, test records", "worst task", "minus random, same size",
        "minus random, same kinds", "cost / one full training",
    )  # fmt: skip
    notes = (
        "Gain: share of the drop in loss that training all layers brings. Means over tasks; intervals, 95 %, are over "
        "seeds, paired, and take the tasks as given. Arms stand in the order of their calibration gain, "
        "by which a default may be chosen; the test gain says what that choice is worth. Costs include stage 1.",
    )
    return Table(f"All {len(results)} tasks together", columns, tuple(rows), notes)


def _cost(results: Sequence[TaskResults], way: str) -> str:
    if any(way not in one.scoring for one in results):
        return ""
    return f"{np.mean([np.mean(one.scoring[way]) / np.mean(one.full_seconds) for one in results]):.2f}"


def pooled_claims(results: Sequence[TaskResults]) -> list[Claim]:
    """For each scoring, over all tasks and seeds: does it recover more of the gain than random sets of its size do?"""
    found, arms = [], common(results)
    for way in results[0].scores:
        for control, rival in rivals(way).items():
            if control in arms:
                text = f"over {len(results)} tasks: {way} beats {rival}"
                ours, theirs = pool_tasks(results, way), pool_tasks(results, control)
                found.append(claim(text, source(way), -theirs, -ours, "of the gain"))
    return found


def rivals(way: str) -> dict[str, str]:
    """Control arm -> what claims call it."""
    return {f"random, kinds of {way}": "random layers of its kinds", RANDOM: RANDOM}


def source(way: str) -> str:
    """Who states that a way of scoring is good."""
    return "ILA" if way.startswith("ILA") else "ours"
