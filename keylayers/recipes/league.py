"""The league: every way of scoring layers, one question, equal budgets. Which picks the layers worth training?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keylayers.errors import BadInput
from keylayers.recipes.bench import Task
from keylayers.recipes.desk import Desk
from keylayers.recipes.league_plan import ENTRANTS, THIN, TURNS, League
from keylayers.recipes.rankings import candidates, full_rate, rankings
from keylayers.recipes.retraining import ALL, RANDOM, Sets, best_of, every, kept, random_like, retrained
from keylayers.runs import RunFolder
from keylayers.scores import LayerScores
from keylayers.studies.arms import Budget
from keylayers.studies.cells import workers


@dataclass(frozen=True)
class Played:
    """One task at one budget: what every entrant and rival gave, per seed."""

    task: Task
    budget: float
    before: Mapping[str, float]
    """Losses of the untuned model, nats per token."""
    trained: Mapping[str, tuple[Mapping[str, Any], ...]]
    """Arm -> losses after training its layers, at its own learning rate."""
    kept: Mapping[str, tuple[float, ...]]
    """Arm -> test loss with only its layers' changes of the whole training; rivals that choose no set are absent."""
    rates: Mapping[str, float]
    chosen: Mapping[str, tuple[tuple[str, ...], ...]]
    """Arm -> the layers it chose with every seed."""
    seconds: Mapping[str, tuple[float, ...]]
    """Entrant -> seconds of choosing, stage 1 included."""
    peaks: Mapping[str, int]
    """Entrant -> bytes that scoring added to what the process held."""
    unable: Mapping[str, str] = field(default_factory=dict)
    """Entrant -> why it cannot score this model; it is in none of the above."""

    def gains(self, arm: str) -> list[float]:
        """Share of the gain of training all layers that an arm recovers, per seed."""
        full = [one["test"] for one in self.trained[ALL]]
        ours = [one["test"] for one in self.trained[arm]]
        before = self.before["test"]
        return [(before - loss) / (before - best) for loss, best in zip(ours, full, strict=True)]


def play(league: League, run: RunFolder, processes: int = 2) -> Iterator[tuple[Played, ...]]:
    """What is known after every task and budget; what is finished is kept in the run folder, cell by cell."""
    played: list[Played] = []
    with workers(processes) as pool:
        for task in league.tasks:
            for found in games(Desk(run, pool), task, league):
                played.append(found)
                yield tuple(played)


def games(desk: Desk, task: Task, league: League) -> Iterator[Played]:
    """One task at every budget."""
    before, names = desk.ask(task, "before", [{}])[0], candidates(desk, task)
    rate = full_rate(desk, task, league.rates)
    ways = {name: ENTRANTS[name] for name in league.entrants}
    found = rankings(desk, task, ways, range(league.seeds), rate, optional=True)
    if not found.scores:
        raise BadInput(f"no entrant can score {task.inputs.model} on {task.name}: {'; '.join(found.unable.values())}")
    for share in league.budgets:
        sets = _sets(found.scores, names, Budget(share), league)
        trained, rates = retrained(desk, task, sets, league.seeds, league.rates)
        for name, options in _rivals(share, task, league).items():
            more, chosen = retrained(desk, task, {name: every(names)}, league.seeds, league.rates, **options)
            trained |= more
            rates |= chosen
        left = kept(desk, task, sets, found.adapters) if found.adapters else {}
        chosen_sets = {name: tuple(tuple(one(seed)[0]) for seed in range(league.seeds)) for name, one in sets.items()}
        yield Played(task, share, before, trained, left, rates, chosen_sets, found.seconds, found.peaks, found.unable)


def _sets(
    scores: Mapping[str, Sequence[LayerScores]], names: Sequence[str], budget: Budget, league: League
) -> dict[str, Sets]:
    """Every arm that chooses a set."""
    like = next(iter(scores.values()))
    drawn = [random_like(like, budget, draw=draw + 1) for draw in range(league.draws)]
    return {
        **{name: best_of(each, budget, ENTRANTS[name].by) for name, each in scores.items()},
        RANDOM: lambda seed: [names for one in drawn for names in one(seed)],
        ALL: every(names),
    }


def _rivals(share: float, task: Task, league: League) -> dict[str, dict[str, Any]]:
    """Rivals that choose no set, as options of a training of all layers that spends about the same."""
    policy = f"random:params={100 * share:g}%:of=lora:seed={{turn}}"
    return {
        TURNS: {"turns": {"every": league.turn, "policy": policy}},
        THIN: {"rank": max(1, round(share * task.lora.rank))},
    }
