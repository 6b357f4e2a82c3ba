"""The league's tables: ranks with intervals over everything played, then every task and budget by itself."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.league.entrants import BEST, BLOCK, BLOCKS, ENTRANTS, KINDS, THIN, TURNS
from keylayers.league.play import LeagueResult
from keylayers.league.standings import Standing
from keylayers.maths.ranks import average_ranks
from keylayers.measures.blow_ups import noted, with_rate
from keylayers.measures.intervals import t_interval
from keylayers.report.words import plural
from keylayers.studies.pages import Claim, Table, adjusted, claim, difference, ledger, plus_minus
from keylayers.studies.retraining import ALL, RANDOM, blow_ups


def make_tables(played: Sequence[LeagueResult]) -> list[Table]:
    """Standings first, then claims, then every task and budget."""
    return [
        standings(played),
        ledger(adjusted(list_claims(played)), "Does it beat random layers?"),
        *map(table_of, played),
    ]


def introduction(played: Sequence[LeagueResult]) -> str:
    """What was played."""
    tasks = ", ".join(dict.fromkeys(f"{one.task.name} ({one.task.inputs.model})" for one in played))
    budgets = " and ".join(dict.fromkeys(f"{one.budget:.0%}" for one in played))
    seeds = len(played[0].trained[ALL])
    return (
        f"Every entrant ranks the layers, chooses as many as fit into {budgets} of what LoRA adds, and has them "
        "trained from the same start for the same steps at the learning rate, of those offered, that served it best on "
        f"calibration records over all seeds. {seeds} seeds, each a procedure of its own. Data: {tasks}. "
        "Entrants that score blocks give each layer the score of its block, and layers outside the blocks the mean; "
        "where a budget holds no whole "
        "block, which of a block's layers train is drawn with every seed, so that such an entrant is judged beside "
        "*random blocks*. *Random, same size* and *random, kinds of midpoint* (as many layers of each kind as midpoint "
        "chooses) are means of several sets of a seed. *Most layers, lower rank* is LoRA of the next rank that the "
        "budget needs, on as many random layers as it pays for."
    )


def _spent(played: Sequence[LeagueResult], name: str) -> str:
    shares: dict[float, list[float]] = {}
    for one in played:
        whole = float(np.mean([each["trainable"] for each in one.trained[ALL]]))
        shares.setdefault(one.budget, []).extend(each["trainable"] / whole for each in one.trained[name])
    return ", ".join(f"{np.mean(each):.1%}" for each in shares.values())


def unable(played: Sequence[LeagueResult]) -> dict[str, str]:
    """Entrants that some task has no ranking by, and why."""
    return {name: reason for one in played for name, reason in one.unable.items()}


def arms_of(played: Sequence[LeagueResult]) -> list[str]:
    """The arms that every task and budget has, `all` left out."""
    return [name for name in played[0].trained if name != ALL and all(name in one.trained for one in played)]


def ranks(played: Sequence[LeagueResult]) -> Float[np.ndarray, "games seeds arms"]:
    """Rank of every arm in every game (a task at a budget) and seed, 1 for the lowest loss; ties share the mean."""
    names = arms_of(played)
    return np.array(
        [
            [average_ranks(np.array([one.trained[name][seed]["test"] for name in names])) for seed in _seeds(played)]
            for one in played
        ]
    )


def standings(played: Sequence[LeagueResult]) -> Table:
    """Mean rank and its interval, mean share of the gain, cost and memory of choosing."""
    names = arms_of(played)
    by_seed = ranks(played).mean(0)
    rows = []
    for place in np.argsort(by_seed.mean(0)):
        name = names[place]
        cost = [_cost(one, name) for one in played if name in one.seconds]
        peak = max((one.peaks.get(name, 0) for one in played), default=0)
        rows.append(
            (
                name, plus_minus(by_seed[:, place]), plus_minus(gain(played, name)), _spent(played, name),
                f"{np.mean(cost):.2f}" if cost else "", f"{peak / 2**20:.0f}" if peak else "",
            )
        )  # fmt: skip
    columns = (
        "layers chosen by", "mean rank", "gain recovered", "parameters", "cost / one full training",
        "MiB added by scoring",
    )  # fmt: skip
    notes = (
        f"Ranks among {len(names)} arms, 1 is best, means over {plural(len(played), 'game')} (tasks x budgets); by "
        f"chance every arm would have {(len(names) + 1) / 2:.1f}. ± 95 % over {len(by_seed)} seeds, whose games are "
        "not independent of each other; tasks and budgets are taken as given. *Cost*: seconds of choosing, stage 1 "
        "included where the entrant needs it, over those of a stage 1, which is one training of all layers; the search "
        "for its learning rate is not counted. *MiB*: that scoring added to what the process held, the most over "
        "seeds and games. *Parameters*: that train, over those of LoRA on all layers, by budget; whole layers and "
        "whole ranks do not spend a budget to the last; of layers that train by turns a budget at a time.",
        *(f"Left out, {name}: {reason}" for name, reason in unable(played).items()),
    )
    return Table("Standings", columns, tuple(rows), notes)


def picture_of(played: Sequence[LeagueResult]) -> list[Standing]:
    """The same as a picture takes it, the best mean rank first."""
    names, found = arms_of(played), []
    for place in np.argsort(ranks(played).mean((0, 1))):
        name = names[place]
        cost = [_cost(one, name) for one in played if name in one.seconds]
        control = name in (RANDOM, KINDS, TURNS, THIN)
        found.append(Standing(name, t_interval(gain(played, name)), float(np.mean(cost)) if cost else None, control))
    return found


def gain(played: Sequence[LeagueResult], name: str) -> Float[np.ndarray, " seeds"]:
    """Share of the gain that an arm recovers, per seed, the mean over games."""
    return np.mean([one.gains(name) for one in played], axis=0)


def list_claims(played: Sequence[LeagueResult]) -> list[Claim]:
    """For each arm, over all games: does it recover more of the gain than random sets of the same size; if it scores
    blocks, than blocks at random?

    Pairs are seeds: games of one seed share stage 1, initial adapters and the order of data.
    """
    names, found = arms_of(played), []
    for name in names:
        blocks = name in ENTRANTS and ENTRANTS[name].granularity == BLOCK and name != BLOCKS and BLOCKS in names
        rival = BLOCKS if blocks else RANDOM
        if name != rival:
            text = f"{name} beats {rival}"
            found.append(claim(text, "league", -gain(played, rival), -gain(played, name), "of the gain"))
    if {BEST, KINDS} <= set(names):
        found.append(claim(f"{BEST} beats {KINDS}", "league", -gain(played, KINDS), -gain(played, BEST), "of the gain"))
    return sorted(found, key=lambda one: -one.effect.interval.estimate)


def _seeds(played: Sequence[LeagueResult]) -> range:
    return range(len(played[0].trained[ALL]))


def table_of(one: LeagueResult) -> Table:
    """One task at one budget."""
    rows = []
    for name in sorted(one.trained, key=lambda arm: float(np.mean([each["test"] for each in one.trained[arm]]))):
        trained = one.trained[name]
        losses = [each["test"] for each in trained]
        against = [each["test"] for each in one.trained[RANDOM]]
        rows.append(
            (
                name, f"{len(one.chosen[name][0])}" if name in one.chosen else "", _parts(one, name),
                f"{trained[0]['trainable']:,.0f}",
                _rate(one, name), plus_minus(losses), f"{np.mean(one.gains(name)):.3f}",
                "" if name == RANDOM else difference(losses, against),
                f"{np.mean(one.kept[name]):.3f}" if name in one.kept else "", _forgotten(one, trained),
            )
        )  # fmt: skip
    columns = (
        "layers chosen by", "layers", "of them", "trainable", "lr", "loss, retrained", "gain recovered",
        "minus random, same size", "loss, changes kept", "control loss, rise",
    )  # fmt: skip
    rates = ", ".join(f"{rate:g}" for rate in one.offered)
    notes = (
        f"Before tuning {one.before['test']:.3f} nats per token; test records; 95 %, paired by seed. Learning rates "
        f"offered: {rates}; *: at the end of what was offered, so that another might serve better. *Of them*: in which "
        "part of a block, or outside of the blocks, the layers lie, over all seeds (of sets drawn, the first).",
        *noted(blow_ups(one.trained)),
        *(f"The same layers with every seed: {', '.join(names)}." for names in alike(one)),
    )
    return Table(f"{one.task.name}, {one.budget:.0%} of LoRA's parameters", columns, tuple(rows), notes)


def _parts(one: LeagueResult, name: str) -> str:
    """Which parts of the network the chosen layers lie in, over all seeds."""
    found = Counter(one.parts[layer] for names in one.chosen.get(name, ()) for layer in names)
    return ", ".join(f"{part} {count / found.total():.0%}" for part, count in sorted(found.items()))


def _forgotten(one: LeagueResult, trained: Sequence[Mapping[str, Any]]) -> str:
    if "control" not in one.before:
        return ""
    return f"{np.mean([each['control'] for each in trained]) - one.before['control']:+.3f}"


def _cost(one: LeagueResult, name: str) -> float:
    return float(np.mean(np.array(one.seconds[name]) / np.array(one.whole)))


def _rate(one: LeagueResult, name: str) -> str:
    edge = len(one.offered) > 1 and one.rates[name] in (min(one.offered), max(one.offered))
    return f"{with_rate(one.rates[name], blow_ups(one.trained)[name])}{'*' if edge else ''}"


def alike(one: LeagueResult) -> list[tuple[str, ...]]:
    """Arms that chose the same layers with every seed: they are one arm under several names."""
    found: dict[object, list[str]] = {}
    for name, sets in one.chosen.items():
        found.setdefault(tuple(frozenset(each) for each in sets), []).append(name)
    return [tuple(names) for names in found.values() if len(names) > 1]


def to_json(played: Sequence[LeagueResult]) -> list[dict[str, Any]]:
    """Everything measured, as JSON."""
    return [
        {
            "task": one.task.fields(),
            "budget": one.budget,
            "before": dict(one.before),
            "arms": {
                name: {
                    "learning_rate": one.rates[name],
                    "layers": [list(names) for names in one.chosen.get(name, ())],
                    "kept": list(one.kept.get(name, ())),
                    "seconds": list(one.seconds.get(name, ())),
                    "peak": one.peaks.get(name),
                    "trained": [
                        {key: value for key, value in each.items() if key != "train_losses"}
                        for each in one.trained[name]
                    ],
                }
                for name in one.trained
            },
        }
        for one in played
    ]
