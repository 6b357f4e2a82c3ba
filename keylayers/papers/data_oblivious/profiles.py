"""Where a model's representation changes, on several corpora, and where its tuning was needed, on several domains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from keylayers.maths.ranks import average_ranks
from keylayers.maths.shifts import ShiftTest, agreement_test, pooled_test, shift_test, shifted_correlations
from keylayers.papers.data_oblivious.cells import block_profile
from keylayers.papers.data_oblivious.plan import PROFILES, Base, on
from keylayers.studies.desk import Desk
from keylayers.studies.rankings import RankingMethod, full_rate, rank_layers
from keylayers.studies.retraining import LearningRateGrid
from keylayers.studies.text_cells import scores_in
from keylayers.studies.text_task import Task

Profile = Float[np.ndarray, " blocks"]
ONE = "1 block"


@dataclass(frozen=True)
class Start:
    """A starting point of tuning."""

    base: Base
    kind: str
    """`base`, or `tuned`: after it was taught to answer."""
    model: str
    """A tuned one's folder is named from the run folder, so that the run can be moved."""
    taught: tuple[float, float] | None = None
    """Loss on what it was taught, before and after, nats per token."""

    @property
    def name(self) -> str:
        """As tables have it."""
        return f"{self.base.name}, {self.kind}"


@dataclass(frozen=True)
class Profiled:
    """What was seen of a starting point."""

    start: Start
    shifts: Mapping[str, Mapping[str, Profile]]
    """Way -> corpus -> shift of every block, high where the representation changes."""
    needed: Mapping[str, Mapping[str, tuple[Profile, ...]]]
    """Window -> domain -> for each seed the loss added when the window around a block is put back, nats per token."""

    @property
    def way(self) -> str:
        """The way that chooses."""
        return next(iter(self.shifts))

    @property
    def window(self) -> str:
        """The window that the paper's claim is about."""
        return f"{self.start.base.window} blocks"

    def mean_rank(self, way: str | None = None) -> Profile:
        """Mean over corpora of the blocks' ranks, high where the representation changes; scales differ too much to
        average the shifts themselves."""
        return np.mean([average_ranks(one) for one in self.shifts[way or self.way].values()], axis=0)

    @property
    def order(self) -> tuple[int, ...]:
        """Blocks, the most critical first; ties in forward order."""
        # deviates: the paper's authors pick blocks by eye from one curve; here the mean rank over corpora picks.
        return tuple(int(block) for block in np.argsort(-self.mean_rank(), kind="stable"))

    def agreement(self, way: str | None = None) -> ShiftTest:
        """Mean correlation of the corpora's profiles with each other."""
        return agreement_test(list(self.shifts[way or self.way].values()))

    def losses(self, window: str) -> list[Profile]:
        """Per domain, the mean over seeds."""
        return [np.mean(each, axis=0) for each in self.needed[window].values()]

    def correlation(self, window: str, way: str | None = None) -> ShiftTest:
        """Mean over domains of the correlation of shift and substitution loss; one shift of the blocks for all."""
        return shift_test(self.mean_rank(way), self.losses(window))

    def by_depth(self, window: str) -> ShiftTest:
        """The same for the plainest profile: earlier blocks are more critical."""
        blocks = len(self.mean_rank())
        return shift_test(-np.arange(blocks, dtype=float), self.losses(window))


def starts(desk: Desk, bases: Sequence[Base]) -> list[Start]:
    """Every base as it is, and tuned."""
    found = []
    for base in bases:
        given = {"data": base.taught, "seed": 0, "lr": base.rate}
        made = desk.ask(base.teach, "start", [given])[0]
        model = base.teach.inputs.model
        found += [
            Start(base, "base", model),
            Start(base, "tuned", made["model"], (made["before"], made["after"])),
        ]
    return found


def profiled(desk: Desk, start: Start, ways: Sequence[str], seeds: int, rates: LearningRateGrid) -> Profiled:
    """Profiles on every corpus, substitution losses on every domain."""
    shifts: dict[str, dict[str, Profile]] = {way: {} for way in ways}
    for corpus in start.base.corpora:
        asked = [
            {
                "criterion": PROFILES[way].criterion,
                "settings": dict(PROFILES[way].settings),
                "adapter": None,
                "records": None,
                "granularity": "block",
            }
            for way in ways
        ]
        for way, result in zip(ways, desk.ask(on(corpus, start.model), "score", asked), strict=True):
            shifts[way][corpus.name] = block_profile(scores_in(desk.run.path, result))
    needed: dict[str, dict[str, tuple[Profile, ...]]] = {}
    for domain in start.base.domains:
        for window, each in substitution_losses(desk, on(domain, start.model), start.base.window, seeds, rates).items():
            needed.setdefault(window, {})[domain.name] = each
    return Profiled(start, shifts, needed)


def substitution_losses(
    desk: Desk, task: Task, window: int, seeds: int, rates: LearningRateGrid
) -> dict[str, tuple[Profile, ...]]:
    """Per width of the window and seed, the loss added when tuned blocks are put back; tuned at the rate that fits."""
    wide = f"{window} blocks"
    ways = {
        wide: RankingMethod("substitution", {"window": window}, granularity="block"),
        ONE: RankingMethod("substitution", {"window": 1}, granularity="block"),
    }
    found = rank_layers(desk, task, ways, range(seeds), full_rate(desk, task, rates, seeds))
    return {name: tuple(block_profile(one) for one in each) for name, each in found.scores.items()}


def pool_models(found: Sequence[Profiled], kind: str) -> ShiftTest | None:
    """Shift against substitution loss over all models of one kind of start, each shifted by itself; None for none."""
    tables = [
        np.mean([shifted_correlations(one.mean_rank(), loss) for loss in one.losses(one.window)], axis=0)
        for one in found
        if one.start.kind == kind
    ]
    return pooled_test(tables) if tables else None
