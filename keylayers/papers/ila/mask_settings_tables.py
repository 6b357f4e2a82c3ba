"""The tables of ILA's fair trial: what each mask's gates did, what it agrees with, what its layers are worth."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from keylayers.maths.ranks import spearman
from keylayers.measures.gain import recovered_gain
from keylayers.measures.intervals import jackknife
from keylayers.papers.ila.mask_settings import STEEPEST, USUAL, Tried, kinds_of
from keylayers.papers.ila.stability import within
from keylayers.scores import LayerScores, agreement
from keylayers.studies.pages import Claim, Table, adjusted, claim, difference, ledger, plus_minus
from keylayers.studies.retraining import ALL, RANDOM

TOP = 0.75
"""Share of layers in the sets whose overlap the paper reports."""

PerSeed = Float[np.ndarray, " seeds"]


def introduction(found: Sequence[Tried], scale: str) -> str:
    """What was done, and what it decides."""
    names = ", ".join(tried.task.name for tried in found)
    return (
        f"Made by `keylayers reproduce ila --scale {scale}`. Tasks: {names}; {_seeds(found)} seeds, each a procedure "
        "of its own (stage 1 at 0.01, mask, random sets, retraining). The paper states neither optimiser nor rate nor "
        "steps, so none of these masks is *the paper's*; its gates are learnt on the tuning data (*training records*), "
        "the others here on calibration records, which helps them. Each name says optimiser, learning rate, steps and "
        "the score that all gates start from: sigmoid(4) = 0.982 is nearly the tuned model, sigmoid(0) = 0.5 halfway. "
        "*To rest*: until no gate moved by 0.005 over 25 steps, 300 steps at most. Sets of layers spend 30 % of what "
        "LoRA adds to all. A default is chosen on calibration records; test records judge it."
    )


def tables(found: Sequence[Tried]) -> list[Table]:
    """All tables; each ledger's p-values are adjusted for its own claims (Holm)."""
    trained = [tried for tried in found if tried.retrained]
    made = [ledger(adjusted(agreement_claims(found)), "Claims: what the masks agree with")]
    made.append(ledger(adjusted(gain_claims(found, "kept")), "Claims: layers' changes kept"))
    if trained:
        made.append(ledger(adjusted(gain_claims(trained, "retrained")), "Claims: layers trained from the start"))
    several = len(found) > 1
    made += [agreements(found, "All tasks together")] if several else []
    made += [worth(found, "kept", "All tasks together: changes kept")] if several else []
    if len(trained) > 1:
        made.append(worth(trained, "retrained", f"{len(trained)} tasks together: trained from the start"))
    for tried in found:
        made += [agreements([tried], tried.task.name), worth([tried], "kept", f"{tried.task.name}: changes kept")]
        if tried.retrained:
            made.append(worth([tried], "retrained", f"{tried.task.name}: trained from the start"))
    return made


def agreements(found: Sequence[Tried], title: str) -> Table:
    """Every mask and reference: final gates, steps, and Spearman with the references and between procedures."""
    rows = []
    for name in _ways(found):
        own = [scores for tried in found for scores in tried.scores[name]]
        rows.append(
            (
                name,
                *_gates(own),
                *("" if name == other else plus_minus(beside(found, name, other)) for other in _references(found)),
                *between(found, name),
                f"{np.mean([np.mean(tried.seconds[name]) / np.mean(tried.whole) for tried in found]):.2f}",
            )
        )
    columns = (
        "scores", "gates: lowest, median, highest", "steps",
        *(f"rho with {other}" for other in _references(found)),
        "rho between procedures", "Jaccard of top 75 % between procedures (by chance)", "cost / stage 1",
    )  # fmt: skip
    notes = (
        "rho: Spearman, means over tasks; ± 95 % over seeds, between procedures by jackknife over seeds. Gates: means "
        "of the lowest, median and highest at the end of each procedure. Costs include stage 1; other work ran beside.",
    )
    return Table(f"{title}: gates and agreement", columns, tuple(rows), notes)


def worth(found: Sequence[Tried], how: str, title: str) -> Table:
    """Every arm's share of the gain of training everything, best on calibration records first."""
    ways = [name for name in _ways(found) if all(name in _losses(tried, how) for tried in found)]
    arms = sorted([*ways, RANDOM], key=lambda name: -float(gains(found, how, name, "calibration").mean()))
    rows = []
    for name in arms:
        test, kinds = gains(found, how, name), kinds_of(name)
        judged = all(kinds in _losses(tried, how) for tried in found)
        rows.append(
            (
                name,
                f"{gains(found, how, name, 'calibration').mean():.3f}",
                plus_minus(test),
                "" if name == RANDOM else difference(test, gains(found, how, RANDOM)),
                difference(test, gains(found, how, kinds)) if judged else "",
                *([", ".join(f"{tried.rates[name]:g}" for tried in found)] if how == "retrained" else []),
            )
        )
    columns = (
        "layers chosen by", "gain, calibration records", "gain, test records", "minus random, same size",
        "minus random, same kinds", *(["lr"] if how == "retrained" else []),
    )  # fmt: skip
    what = {
        "kept": "the fully tuned model with only these layers' changes",
        "retrained": "LoRA on these layers alone, from the start, at the rate of lowest mean calibration loss",
    }[how]
    gain = "gain: share of the drop in loss of training everything, which is stage 1"
    notes = (f"{what}; {gain}. Intervals: 95 %, over seeds, paired.",)
    return Table(title, columns, tuple(rows), notes)


def agreement_claims(found: Sequence[Tried]) -> list[Claim]:
    """Each other mask beside the usual one: does it agree more with leave-one-out and with the midpoint gradient?"""
    claims = []
    for name in _masks(found):
        for other in ("leave one out", "midpoint"):
            if name != USUAL:
                ours, usual = beside(found, name, other), beside(found, USUAL, other)
                claims.append(claim(f"{name} agrees more with {other} than {USUAL}", "ours", -usual, -ours, "rho"))
    return claims


def gain_claims(found: Sequence[Tried], how: str) -> list[Claim]:
    """Each mask's layers beside random ones of its kinds and of its size, and beside the usual mask's."""
    claims = []
    arms = [name for name in _masks(found) if all(name in _losses(tried, how) for tried in found)]
    pairs = [(name, rival) for name in arms for rival in (kinds_of(name), RANDOM)]
    pairs += [(name, USUAL) for name in arms if name != USUAL and USUAL in arms]
    pairs += [("midpoint", name) for name in (USUAL, STEEPEST) if name in arms]
    for name, rival in pairs:
        ours, theirs = gains(found, how, name), gains(found, how, rival)
        label = "random layers of its kinds" if rival == kinds_of(name) else rival
        source = "ILA" if name != "midpoint" and rival in (RANDOM, kinds_of(name)) else "ours"
        claims.append(claim(f"{how}: {name} beats {label}", source, -theirs, -ours, "of the gain"))
    return claims


def gains(found: Sequence[Tried], how: str, arm: str, on: str = "test") -> PerSeed:
    """Share of the gain of training everything that an arm recovers, per seed, the mean over tasks."""

    def of_task(tried: Tried) -> PerSeed:
        losses, full = ([one[on] for one in _losses(tried, how)[name]] for name in (arm, ALL))
        return recovered_gain(tried.before[on], losses, full)

    return np.mean([of_task(tried) for tried in found], axis=0)


def beside(found: Sequence[Tried], name: str, other: str) -> PerSeed:
    """Spearman of two ways' rankings of the same procedure, per seed, the mean over tasks."""

    def of_task(tried: Tried) -> list[float]:
        pairs = zip(tried.scores[name], tried.scores[other], strict=True)
        return [spearman(first.values, second.values).value for first, second in pairs]

    return np.mean([of_task(tried) for tried in found], axis=0)


def between(found: Sequence[Tried], name: str) -> tuple[str, str]:
    """How far whole procedures of different seeds agree: Spearman, and the overlap of the top sets beside chance."""

    def over_pairs(measure: Callable[[LayerScores, LayerScores], float]) -> str:
        pairs = [within(tried.scores[name]) for tried in found]
        means = np.mean([[measure(a, b) for _, _, a, b in each] for each in pairs], axis=0)
        interval = jackknife(means.tolist(), [(first, second) for first, second, _, _ in pairs[0]])
        half = (interval.high - interval.low) / 2
        return f"{interval.estimate:.3f}" + (f" ± {half:.3f}" if np.isfinite(half) else "")

    chance = np.mean([agreement(*within(tried.scores[name])[0][2:], TOP).top.expected for tried in found])
    rho = over_pairs(lambda a, b: spearman(a.values, b.values).value)
    overlap = over_pairs(lambda a, b: agreement(a, b, TOP).top.jaccard)
    return rho, f"{overlap} ({chance:.3f})"


def to_json(found: Sequence[Tried]) -> dict[str, Any]:
    """Everything measured, as JSON."""
    return {
        "tasks": [
            {
                "task": tried.task.fields(),
                "before": dict(tried.before),
                "layers": [layer.name for layer in tried.scores["midpoint"][0].layers],
                "rankings": {
                    name: [{"values": scores.values.tolist(), **_noted(scores)} for scores in each]
                    for name, each in tried.scores.items()
                },
                "scoring_seconds": {name: list(each) for name, each in tried.seconds.items()},
                "stage_one_seconds": list(tried.whole),
                "kept": {name: [dict(one) for one in each] for name, each in tried.kept.items()},
                "retrained": {
                    name: [{key: value for key, value in one.items() if key != "train_losses"} for one in each]
                    for name, each in tried.retrained.items()
                },
                "learning_rates": dict(tried.rates),
            }
            for tried in found
        ]
    }


def _noted(scores: LayerScores) -> dict[str, Any]:
    """How a mask's gates ended and the steps it took; nothing of other rankings."""
    settings = scores.provenance.settings
    return {"gates": settings["gates"], "steps": len(settings["losses"][0])} if "gates" in settings else {}


def _gates(each: Sequence[LayerScores]) -> tuple[str, str]:
    """The end of the gates and the steps it took, of rankings that a mask gave; empty for others."""
    noted = [_noted(scores) for scores in each]
    if "gates" not in noted[0]:
        return "", ""
    ends = np.mean([one["gates"][0] for one in noted], axis=0)
    return ", ".join(f"{value:.3f}" for value in ends), f"{np.mean([one['steps'] for one in noted]):.0f}"


def _ways(found: Sequence[Tried]) -> list[str]:
    return list(found[0].scores)


def _masks(found: Sequence[Tried]) -> list[str]:
    return [name for name in _ways(found) if "gates" in _noted(found[0].scores[name][0])]


def _references(found: Sequence[Tried]) -> list[str]:
    return [name for name in _ways(found) if name not in _masks(found)]


def _losses(tried: Tried, how: str) -> Mapping[str, Sequence[Mapping[str, float]]]:
    return tried.kept if how == "kept" else tried.retrained


def _seeds(found: Sequence[Tried]) -> int:
    return len(found[0].kept[ALL])
