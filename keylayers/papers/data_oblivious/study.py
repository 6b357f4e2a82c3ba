"""Data-oblivious critical layers (Liu et al., Findings of ACL 2025) put to the test.

Where the representation changes most, on any corpus and before any tuning: is it the same place whatever the corpus, is
it where tuning is needed, is it worth training alone, and does freezing it keep a backdoor out?
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from keylayers.papers.data_oblivious.block_training import (
    Adapted,
    Defended,
    Removed,
    adapted,
    chosen,
    defended,
    removed,
)
from keylayers.papers.data_oblivious.cells import compute
from keylayers.papers.data_oblivious.plan import Scale
from keylayers.papers.data_oblivious.profiles import Profiled, profiled, starts
from keylayers.runs import RunFolder
from keylayers.studies.desk import Desk
from keylayers.studies.runner import workers


@dataclass(frozen=True)
class Study:
    """All that was measured; what a scale leaves out is empty."""

    profiled: tuple[Profiled, ...]
    adapted: tuple[Adapted, ...] = ()
    defended: tuple[Defended, ...] = ()
    removed: tuple[Removed, ...] = ()


def reproduce(scale: Scale, run: RunFolder, processes: int = 2) -> Iterator[Study]:
    """What is known after every part; what is finished is kept in the run folder, cell by cell."""
    with workers(processes) as pool:
        yield from studies(Desk(run, pool, compute), scale)


def studies(desk: Desk, scale: Scale) -> Iterator[Study]:
    """The study after every part, at any desk: profiles, removal, then each domain and each defence."""
    found = [profiled(desk, start, scale.ways, scale.seeds, scale.rates) for start in starts(desk, scale.bases)]
    yield (known := Study(tuple(found)))
    if taken := scale.removal:
        for one in chosen(found, taken.base, taken.starts):
            known = replace(known, removed=(*known.removed, removed(desk, one, taken)))
        yield known
    if asked := scale.adaptation:
        for base in map(scale.base, asked.bases):
            for one in chosen(found, base.name, asked.starts):
                trained = [adapted(desk, one, task, asked) for task in base.domains]
                known = replace(known, adapted=(*known.adapted, *trained))
                yield known
    for defence in scale.defences:
        for one in chosen(found, defence.base, defence.starts):
            for guarded in defended(desk, one, defence):
                known = replace(known, defended=(*known.defended, guarded))
                yield known
