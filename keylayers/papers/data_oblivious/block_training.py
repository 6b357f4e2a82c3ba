"""Critical blocks put to use: trained alone on a domain, frozen while poisoned data is tuned on, stripped of their top
components."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.measures.backdoor import LEAST_SUCCESS
from keylayers.measures.gain import recovered_gain
from keylayers.papers.data_oblivious.block_sets import (
    CRITICAL,
    LEAST,
    MIXED,
    OTHERS,
    BlockSets,
    frozen_sets,
    layers_of,
    list_block_sets,
    size_of,
    trained_sets,
)
from keylayers.papers.data_oblivious.plan import Adaptation, Defence, Removal, on
from keylayers.papers.data_oblivious.profiles import Profiled, Start
from keylayers.studies.desk import Desk, averaged
from keylayers.studies.retraining import ALL, Sets, best_rates, retrained, same_for_all_seeds
from keylayers.studies.text_task import Task

NONE = "nothing frozen"
WORDS = "words"
"""What attack success asks for, in the key of a cell: earlier results also asked for the end of the answer."""
DEFENDING = (CRITICAL, OTHERS, MIXED, LEAST)
"""Sets that are frozen; the ends are compared in training alone."""

PerSeed = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Adapted:
    """What training few blocks on one domain gave, by arm and seed."""

    start: Start
    task: Task
    before: Mapping[str, float]
    blocks: Mapping[str, tuple[tuple[int, ...], ...]]
    """Arm -> the sets trained under the first seed."""
    trained: Mapping[str, PerSeed]
    rates: Mapping[str, float]

    def losses(self, arm: str) -> list[float]:
        """Test loss per seed."""
        return [one["test"] for one in self.trained[arm]]

    @property
    def judged(self) -> bool:
        """Whether training everything lowers the loss of calibration records: else there is nothing to recover."""
        return bool(np.mean([one["calibration"] for one in self.trained[ALL]]) < self.before["calibration"])

    def gains(self, arm: str) -> Float[np.ndarray, " seeds"]:
        """Share of the gain of training everything that an arm recovers, per seed."""
        return recovered_gain(self.before["test"], self.losses(arm), self.losses(ALL))


@dataclass(frozen=True)
class Defended:
    """What poisoned tuning with blocks frozen gave, by trigger, arm and seed."""

    start: Start
    task: Task
    frozen: int
    """Blocks that stand still."""
    before: Mapping[str, Mapping[str, float]]
    """Trigger -> the same measures before tuning."""
    blocks: Mapping[str, tuple[tuple[int, ...], ...]]
    tuned: Mapping[str, Mapping[str, PerSeed]]
    """Trigger -> arm -> what tuning gave, per seed."""
    rates: Mapping[str, float]

    @property
    def judged(self) -> list[str]:
        """Triggers whose attack works where nothing is frozen: of the others nothing can be said."""
        return [name for name in self.tuned if np.mean(self.values(NONE, "attack", name)) >= LEAST_SUCCESS]

    def values(self, arm: str, what: str, trigger: str | None = None) -> list[float]:
        """A measure per trigger and seed; without a trigger, of those judged."""
        chosen = [trigger] if trigger else self.judged
        return [float(one[what]) for name in chosen for one in self.tuned[name][arm]]

    def per_seed(self, arm: str, what: str) -> Float[np.ndarray, " seeds"]:
        """A measure per seed, the mean over the triggers judged."""
        return np.mean([self.values(arm, what, trigger) for trigger in self.judged], axis=0)

    def learnt(self, arm: str) -> list[float]:
        """Nats per token gained on clean test records, per judged trigger and seed."""
        chosen = self.judged
        return [self.before[name]["test"] - one["test"] for name in chosen for one in self.tuned[name][arm]]


@dataclass(frozen=True)
class Removed:
    """Answers with and without components of one block."""

    start: Start
    task: Task
    intact: Mapping[str, Any]
    places: Mapping[str, int]
    """Label -> block."""
    found: Mapping[tuple[str, int, str], Mapping[str, Any]]
    """(label, components, way) -> what became of the answers."""


def adapted(desk: Desk, found: Profiled, task: Task, asked: Adaptation) -> Adapted:
    """Every set of blocks trained alone on a domain, at the rate that serves it."""
    # deviates: the paper tunes in full; here LoRA on every matrix, because a base serves many arms and is left whole.
    own = on(task, found.start.model)
    blocks, outside = layers_of(desk, own)
    sets = list_block_sets(found.order, size_of(asked.share, len(blocks)), asked.draws)
    arms: dict[str, Sets] = {name: trained_sets(one, blocks) for name, one in sets.items()}
    arms[ALL] = same_for_all_seeds([*(name for block in blocks for name in block), *outside])
    trained, rates = retrained(desk, own, arms, asked.seeds, asked.rates)
    return Adapted(found.start, own, desk.ask(own, "before", [{}])[0], _first(sets), trained, rates)


def defended(desk: Desk, found: Profiled, asked: Defence) -> Iterator[Defended]:
    """Every share of blocks frozen under every attack; each arm at the rate that serves it on clean records."""
    task = on(asked.task, found.start.model)
    blocks, outside = layers_of(desk, task)
    before = {
        name: desk.ask(task, "unpoisoned", [{"poison": asdict(one), "asks": WORDS}])[0]
        for name, one in asked.poisons.items()
    }
    for share in asked.shares:
        size = size_of(share, len(blocks))
        sets = {name: one for name, one in list_block_sets(found.order, size, asked.draws).items() if name in DEFENDING}
        arms: dict[str, Sets] = {name: frozen_sets(one, blocks, outside) for name, one in sets.items()}
        arms[NONE] = frozen_sets(lambda seed: [()], blocks, outside)
        rates = best_rates(desk, task, arms, asked.rates, asked.seeds)
        tuned = {name: _poisoned(desk, task, arms, rates, asked, name) for name in asked.poisons}
        yield Defended(found.start, task, size, before, _first(sets), tuned, rates)


def _poisoned(
    desk: Desk, task: Task, arms: Mapping[str, Sets], rates: Mapping[str, float], asked: Defence, trigger: str
) -> dict[str, PerSeed]:
    poison = asdict(asked.poisons[trigger])
    places = [(arm, seed, names) for seed in range(asked.seeds) for arm in arms for names in arms[arm](seed)]
    given = [
        {"layers": list(names), "seed": seed, "lr": rates[arm], "poison": poison, "asks": WORDS}
        for arm, seed, names in places
    ]
    drawn: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for (arm, seed, _), result in zip(places, desk.ask(task, "poisoned", given), strict=True):
        drawn.setdefault((arm, seed), []).append(result)
    return {arm: tuple(averaged(drawn[arm, seed]) for seed in range(asked.seeds)) for arm in arms}


def removed(desk: Desk, found: Profiled, asked: Removal) -> Removed:
    """Components taken out of the most critical block, the middle one and the least critical one."""
    task = on(asked.task, found.start.model)
    order = found.order
    places = {"most critical": order[0], "least critical": order[-1]}
    if (middle := len(order) // 2) not in places.values():
        places["in the middle"] = middle
    keys = [
        (label, count, way)
        for label in places
        for count in asked.components
        for way in ("stored", "projected", "random")
    ]
    common = {"records": asked.records, "new_tokens": asked.new_tokens}
    given: list[dict[str, Any]] = [{"block": None, "components": 0, "way": "stored", **common}]
    given += [{"block": places[label], "components": count, "way": way, **common} for label, count, way in keys]
    intact, *rest = desk.ask(task, "removal", given)
    return Removed(found.start, task, intact, places, dict(zip(keys, rest, strict=True)))


def _first(sets: Mapping[str, BlockSets]) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {name: tuple(one(0)) for name, one in sets.items()}


def chosen(found: Sequence[Profiled], base: str, kinds: Sequence[str]) -> list[Profiled]:
    """The starting points of one base, of those kinds."""
    return [one for one in found if one.start.base.name == base and one.start.kind in kinds]
