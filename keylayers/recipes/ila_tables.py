"""The tables of the ILA study: stability beside its nulls, validity beside its controls, the cost of choosing."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keylayers.maths.stability import holm
from keylayers.measures import Interval, PairedDifference, paired_difference, t_interval
from keylayers.recipes.ila import TaskResults
from keylayers.scores import agreements
from keylayers.studies.pages import Claim, Table, ledger

PAPER_TOP = 0.75
"""Share of layers in the sets whose overlap the paper reports."""


def tables(results: Sequence[TaskResults]) -> list[Table]:
    """All tables of a study, the ledger of claims first."""
    found = [claims(results)]
    found += [validity(one) for one in results]
    found.append(between_seeds(results))
    found += [between_tasks(group) for group in _same_model(results)]
    found.append(costs(results))
    return found


def introduction(results: Sequence[TaskResults], scale: str) -> str:
    """What was done, and what differs from the paper."""
    one = results[0]
    share = one.arms[next(iter(one.scores))].choices[0].policy
    names = ", ".join(result.task.name for result in results)
    return (
        f"Made by `keylayers reproduce ila --scale {scale}`. Tasks: {names}. Every arm trains LoRA on the layers it "
        f"chose, from the same start, for the same steps, within the same budget (`{share}`: what LoRA adds), at the "
        "learning rate that served it best on calibration records. Each seed is a procedure of its own: stage 1, "
        "scores, random sets, retraining.\n\n"
        "What differs from the paper: models of 0.26 and 2.5 million parameters in place of 7 to 13 billion; its "
        "initial score (4.0) and steps are believed, not known; scores are learnt on calibration records, not on the "
        "tuning data; what is judged is held-out loss, not a judge model's taste. The paper reports Jaccard indices of "
        "about 0.90 between data sets, 0.86 for reasoning and 0.70 between models, that freezing about 25 % helps, and "
        "that tuning 10 to 30 % comes close to tuning all."
    )


def gains(result: TaskResults, arm: str) -> np.ndarray:
    """Share of the gain of training all layers that an arm recovers, per seed."""
    before = result.before["test"]
    full = np.array([one["test"] for one in result.retrained["all"]])
    return (before - np.array([one["test"] for one in result.retrained[arm]])) / (before - full)


def validity(result: TaskResults) -> Table:
    """Every arm: loss after training only its layers, what it recovers, and how it differs from random sets."""
    rows = []
    for name in sorted(result.arms, key=lambda arm: np.mean([one["test"] for one in result.retrained[arm]])):
        trained = result.retrained[name]
        losses = [one["test"] for one in trained]
        kinds = f"random, kinds of {name}"
        rows.append(
            (
                name,
                f"{len(result.arms[name].choice(0))}",
                f"{trained[0]['trainable']:,}",
                f"{result.rates[name]:g}",
                _plus_minus(losses),
                f"{gains(result, name).mean():.3f}",
                _difference(losses, result, "random, same size", name),
                _difference(losses, result, kinds, name) if kinds in result.arms else "",
                f"{np.mean(result.kept[name]):.3f}",
                f"{np.mean([one['control'] for one in trained]):.3f}" if "control" in trained[0] else "",
            )
        )
    columns = (
        "layers chosen by", "layers", "trainable", "lr", "loss, retrained", "gain recovered", "minus random, same size",
        "minus random, same kinds", "loss, changes kept", "control loss",
    )  # fmt: skip
    seeds = len(result.retrained["all"])
    notes = (
        f"Before tuning {result.before['test']:.3f} nats per token"
        + (f" (control {result.before['control']:.3f})" if "control" in result.before else "")
        + f"; test records; {seeds} seeds, each with its own stage 1, scores, random sets and retraining; ± and "
        "intervals are 95 %, paired by seed. *Changes kept*: the fully tuned model with only these layers' changes.",
    )
    return Table(f"{result.task.name}: at equal budget of LoRA parameters", columns, tuple(rows), notes)


def between_seeds(results: Sequence[TaskResults]) -> Table:
    """How far rankings of independent stage 1 runs on the same data agree, beside what chance and kinds give."""
    rows = []
    for result in results:
        for way, scores in result.scores.items():
            rows.append((result.task.name, way, *_agreement(scores, [f"seed {i}" for i in range(len(scores))])))
    return Table("Stability: between seeds", ("task", "scores", *AGREEMENT), tuple(rows), AGREEMENT_NOTES)


def between_tasks(results: Sequence[TaskResults]) -> Table:
    """How far rankings on different data agree, each with a stage 1 of its own seed."""
    rows = []
    for way in results[0].scores:
        scores = [one.scores[way][index % len(one.scores[way])] for index, one in enumerate(results)]
        rows.append((way, *_agreement(scores, [one.task.name for one in results])))
    names = ", ".join(one.task.name for one in results)
    notes = ("The paper reports a Jaccard index of about 0.90 between data sets, 0.86 for reasoning.", *AGREEMENT_NOTES)
    return Table(f"Stability: between {names}", ("scores", *AGREEMENT), tuple(rows), notes)


AGREEMENT = ("Jaccard, top 75 %", "by chance", "Kuncheva", "Spearman", "p random", "p same kinds", "p along depth")
AGREEMENT_NOTES = ("Means over pairs; p: the largest of the pairs, adjusted for their number (Holm).",)


def _agreement(scores: Sequence[Any], labels: Sequence[str]) -> tuple[str, ...]:
    found = agreements(list(scores), PAPER_TOP, labels=labels)
    upper = np.triu_indices(len(scores), k=1)
    means = [found.matrix(quantity)[upper].mean() for quantity in ("jaccard", "expected", "kuncheva", "spearman")]
    largest = [found.p_values(null).max() for null in ("random", "kind", "depth")]
    return (*(f"{value:.3f}" for value in means), *(f"{value:.2g}" for value in largest))


def costs(results: Sequence[TaskResults]) -> Table:
    """Seconds of choosing layers, stage 1 included, as a share of one training of all layers."""
    rows = []
    for result in results:
        full = np.mean(result.full_seconds)
        for way, seconds in result.scoring.items():
            share = np.array(seconds) / full
            rows.append((result.task.name, way, f"{np.mean(seconds):.1f}", f"{share.mean():.2f}"))
    notes = ("Measured while other cells ran beside it: shares, not seconds, are meant to be compared.",)
    return Table("What choosing costs", ("task", "scores", "seconds", "share of one full training"), tuple(rows), notes)


def claims(results: Sequence[TaskResults]) -> Table:
    """For each task and scoring: does it beat random sets of its kinds, and of its size?"""
    found = []
    for result in results:
        for way in result.scores:
            losses = [one["test"] for one in result.retrained[way]]
            for control in (f"random, kinds of {way}", "random, same size"):
                if control in result.arms:
                    rival = "random layers of its kinds" if "kinds" in control else control
                    text = f"{result.task.name}: {way} beats {rival}"
                    source = "ILA" if way.startswith("ILA") else "ours"
                    effect = paired_difference([one["test"] for one in result.retrained[control]], losses)
                    found.append(Claim(text, source, effect, "nats", effect.p_value))
    adjusted = holm(np.array([claim.p_value for claim in found]))
    return ledger([replace(claim, p_value=float(p)) for claim, p in zip(found, adjusted, strict=True)])


def _same_model(results: Sequence[TaskResults]) -> list[list[TaskResults]]:
    """Tasks on one model, where there are two or more."""
    groups: dict[str, list[TaskResults]] = {}
    for one in results:
        groups.setdefault(one.task.inputs.model, []).append(one)
    return [group for group in groups.values() if len(group) > 1]


def _plus_minus(values: Sequence[float]) -> str:
    found: Interval = t_interval(values)
    return f"{found.estimate:.3f} ± {(found.high - found.low) / 2:.3f}"


def _difference(losses: Sequence[float], result: TaskResults, control: str, name: str) -> str:
    if control == name:
        return ""
    found: PairedDifference = paired_difference(losses, [one["test"] for one in result.retrained[control]])
    half = (found.interval.high - found.interval.low) / 2
    return f"{found.interval.estimate:+.3f} ± {half:.3f}"


def plain(results: Sequence[TaskResults]) -> list[Mapping[str, Any]]:
    """Everything measured, as JSON: what the tables are made of."""
    return [
        {
            "task": one.task.fields(),
            "before": dict(one.before),
            "full_seconds": list(one.full_seconds),
            "scoring_seconds": {name: list(seconds) for name, seconds in one.scoring.items()},
            "rankings": {name: [scores.values.tolist() for scores in each] for name, each in one.scores.items()},
            "layers": [layer.name for layer in next(iter(one.scores.values()))[0].layers],
            "arms": {
                name: {
                    "learning_rate": one.rates[name],
                    "layers": [list(choice.names) for choice in arm.choices],
                    "retrained": [
                        {key: value for key, value in each.items() if key != "train_losses"}
                        for each in one.retrained[name]
                    ],
                    "kept": list(one.kept[name]),
                }
                for name, arm in one.arms.items()
            },
        }
        for one in results
    ]
