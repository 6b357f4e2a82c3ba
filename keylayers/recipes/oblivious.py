"""Data-oblivious critical layers (Liu et al., Findings of ACL 2025) put to the test.

Where the representation changes most, on any corpus and before any tuning: is it the same place whatever the corpus, is
it where tuning is needed, is it worth training alone, and does freezing it keep a backdoor out?
"""

from collections.abc import Iterator
from dataclasses import dataclass

from keylayers.recipes.desk import Desk
from keylayers.recipes.oblivious_cells import compute
from keylayers.recipes.oblivious_plan import Scale
from keylayers.recipes.oblivious_profiles import Profiled, profiled, starts
from keylayers.recipes.oblivious_training import Adapted, Defended, Removed, adapted, chosen, defended, removed
from keylayers.runs import RunFolder
from keylayers.studies.cells import workers


@dataclass(frozen=True)
class Study:
    """All that was measured; what a scale leaves out is empty."""

    profiled: tuple[Profiled, ...]
    adapted: tuple[Adapted, ...] = ()
    defended: tuple[Defended, ...] = ()
    removed: tuple[Removed, ...] = ()


def reproduce(scale: Scale, run: RunFolder, processes: int = 2) -> Iterator[Study]:
    """Everything of a scale, part by part; what is finished is kept in the run folder, cell by cell."""
    with workers(processes) as pool:
        yield study(Desk(run, pool, compute), scale)


def study(desk: Desk, scale: Scale) -> Study:
    """The parts, at any desk."""
    found = [profiled(desk, start, scale.ways, scale.seeds, scale.rates) for start in starts(desk, scale.bases)]
    trained: list[Adapted] = []
    if asked := scale.adaptation:
        for name in asked.bases:
            for one in chosen(found, name, asked.starts):
                trained += [adapted(desk, one, task, asked) for task in scale.base(name).domains]
    guarded = [
        result
        for defence in scale.defences
        for one in chosen(found, defence.base, defence.starts)
        for result in defended(desk, one, defence)
    ]
    stripped: list[Removed] = []
    if taken := scale.removal:
        stripped = [removed(desk, one, taken) for one in chosen(found, taken.base, taken.starts)]
    return Study(tuple(found), tuple(trained), tuple(guarded), tuple(stripped))
