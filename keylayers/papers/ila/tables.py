"""The tables of the ILA study: stability beside its nulls, validity beside its controls, the cost of choosing."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from keylayers.measures.blow_ups import noted, with_rate
from keylayers.papers.ila.early_choice import frugal_claims, frugal_table
from keylayers.papers.ila.overlaps import of_results, overlap_table
from keylayers.papers.ila.pooled import gains, overall, pooled_claims, rivals, source
from keylayers.papers.ila.reasoning import reasoning_table
from keylayers.papers.ila.share_sweep import sweep_claims, sweep_table
from keylayers.papers.ila.study import Study, TaskResults
from keylayers.papers.ila.transfer import transfer_claims, transfer_table
from keylayers.studies.pages import Claim, Table, adjusted, claim, difference, ledger, plus_minus
from keylayers.studies.retraining import RANDOM, blow_ups


def make_tables(study: Study) -> list[Table]:
    """All tables of a study, the ledgers of claims first; each ledger's p-values are adjusted for its own claims."""
    results = study.tasks
    found = []
    if len(results) > 1:
        found = [overall(results), ledger(adjusted(pooled_claims(results)), "Claims over all tasks")]
    found.append(ledger(adjusted(task_claims(results)), "Claims, task by task"))
    others = [*(one for swept in study.swept for one in sweep_claims(swept)), *frugal_claims(study.chosen)]
    others += transfer_claims(study.carried) if study.carried else []
    if others:
        found.append(ledger(adjusted(others), "Other claims"))
    found += [validity(one) for one in results]
    found += [sweep_table(one) for one in study.swept]
    found += [frugal_table(study.chosen)] if study.chosen else []
    found += [reasoning_table(study.answered)] if study.answered else []
    found += [transfer_table(study.carried)] if study.carried else []
    found.append(overlap_table(of_results(results) + list(study.overlaps)))
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
                f"{trained[0]['trainable']:,.0f}",
                with_rate(result.rates[name], blow_ups(result.retrained)[name]),
                plus_minus(losses),
                f"{gains(result, name).mean():.3f}",
                _against(losses, result, RANDOM, name),
                _against(losses, result, kinds, name) if kinds in result.arms else "",
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
        *noted(blow_ups(result.retrained)),
    )
    return Table(f"{result.task.name}: at equal budget of LoRA parameters", columns, tuple(rows), notes)


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


def task_claims(results: Sequence[TaskResults]) -> list[Claim]:
    """For each task and scoring: does it beat random sets of its kinds, and of its size?"""
    found = []
    for result in results:
        for way in result.scores:
            losses = [one["test"] for one in result.retrained[way]]
            for control, rival in rivals(way).items():
                if control in result.arms:
                    others = [one["test"] for one in result.retrained[control]]
                    found.append(claim(f"{result.task.name}: {way} beats {rival}", source(way), others, losses))
    return found


def _against(losses: Sequence[float], result: TaskResults, control: str, name: str) -> str:
    return "" if control == name else difference(losses, [one["test"] for one in result.retrained[control]])


def to_json(study: Study) -> dict[str, Any]:
    """Everything measured, as JSON: what the tables are made of."""
    return {
        "tasks": _plain_tasks(study.tasks),
        "overlaps": [
            {
                "question": one.question,
                "of": one.of,
                "way": one.way,
                "pairs": [[first, second, a.values.tolist(), b.values.tolist()] for first, second, a, b in one.pairs],
            }
            for one in study.overlaps
        ],
        "sweeps": [
            {
                "task": one.task.name,
                "nf4": one.nf4,
                "before": one.before,
                "losses": {f"{arm}, {share:g}": list(each) for (arm, share), each in one.losses.items()},
                "rates": {f"{arm}, {share:g}": rate for (arm, share), rate in one.rates.items()},
            }
            for one in study.swept
        ],
        "early": [
            {
                "task": one.task.name,
                "seconds": {name: list(each) for name, each in one.seconds.items()},
                "full_seconds": list(one.full_seconds),
                "losses": {name: list(each) for name, each in one.losses.items()},
                "rankings": {name: [scores.values.tolist() for scores in each] for name, each in one.scores.items()},
            }
            for one in study.chosen
        ],
        "reasoning": asdict(study.answered) if study.answered else None,
        "transfer": asdict(study.carried) if study.carried else None,
    }


def _plain_tasks(results: Sequence[TaskResults]) -> list[Mapping[str, Any]]:
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
