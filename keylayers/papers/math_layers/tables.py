"""The tables of the study of layers for mathematics: claims first, then what they rest on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keylayers.measures.intervals import jackknife
from keylayers.papers.math_layers.analysis import (
    Likeness,
    critical,
    damage,
    elbow_distances,
    likenesses,
    named,
    short,
    top,
)
from keylayers.papers.math_layers.claims import core_claims, further_claims
from keylayers.papers.math_layers.probes import CHAIN, RECALL, STEP
from keylayers.papers.math_layers.study import BASE, Model, Study, lowered
from keylayers.studies.pages import Table, adjusted, ledger, plus_minus

TITLE = "Layers for mathematics, measured"

OF_THEIR_OWN = (
    "*Of their right answers*: a drop over what the whole model gets right of that probe under that seed, because a "
    "probe that was half forgotten has half as much to lose; models that get none right are left out. Intervals are "
    "over seeds, for these bases and variants."
)

ORDER = (STEP, RECALL, CHAIN)


def introduction(study: Study, scale: str) -> str:
    """The claim, the experiment that could refute it, and what differs from the paper."""
    asked = study.scale
    bases, families = (", ".join(map(short, some)) for some in (asked.bases, asked.families))
    lengths = study.profiles[asked.bases[0], BASE][0]["lengths"]
    return (
        f"Made by `keylayers reproduce math-layers --scale {scale}`.\n\n"
        "**The claim** (Nepal et al. 2025): the blocks that mathematics needs are critical already after pre-training "
        "and stay the same through instruction tuning, distillation and reinforcement learning; without them, "
        "arithmetic loses far more than factual recall.\n\n"
        "**What would refute it.** Every block is made the identity in turn. If the order of the damage in a base and "
        "in its own post-trained variants agrees no more than in two bases that were pre-trained independently, then "
        "being kept through post-training is nothing that pre-training had to forge: it is what any network of this "
        "kind looks like. And if recall loses as much as arithmetic where answers have equally many tokens, it was the "
        "length of the answers that was fragile.\n\n"
        f"Bases: {bases}; variants of: {families}; {asked.seeds} seeds, each with its own records and its own training "
        f"of every variant. A seed has {asked.records} single steps of chains (test split, the steps before given) and "
        f"as many facts about people on whom no variant was trained, in answers of equally many tokens "
        f"({', '.join(f'{count} of {length}' for length, count in lengths.items())}), and {asked.records // 2} whole "
        "chains. No two sides of a comparison share a record. Two bases are compared on the blocks of the shallower "
        "one, by relative depth, and so are the variants beside them.\n\n"
        "What differs from the paper: models of 1 to 2.5 million parameters trained on a synthetic world in place of 7 "
        "to 8 billion; post-training of minutes, GRPO by trl and the rest by this package; teacher forcing and greedy "
        "decoding in place of 50 answers sampled at T = 0.7 (standard error about 7 points); chains of sums in place "
        "of GSM8K and MATH500, facts of the world in place of TriviaQA, whose rule (the gold answer anywhere in the "
        "output) flatters long outputs; its NMI procedure is not published, ours compares with the clusters of the "
        "first block."
    )


def make_tables(study: Study) -> list[Table]:
    """All tables."""
    found = []
    if study.judged:
        found.append(ledger(adjusted(core_claims(study)), "Claims: kept by post-training?"))
    further = ledger(adjusted(further_claims(study)), "Claims: arithmetic against recall, and clusters of tokens")
    found.append(replace(further, notes=(*further.notes, OF_THEIR_OWN)))
    found += [variants_table(study), beside_the_paper(study)]
    found += [likeness_table(likenesses(study, what), what) for what in ("loss", "exact")]
    found += [blocks_table(study, base) for base in study.scale.bases]
    return [*found, elbow_table(study), costs_table(study)]


def variants_table(study: Study) -> Table:
    """Whether every variant differs from its base, without which it says nothing."""
    rows = []
    for model, found in study.variants.items():
        rows.append(
            (
                named(model), _mean(found, "cost_before"), _mean(found, "cost"), f"{lowered(found).p_value:.1g}",
                _mean(found, "moved"), f"{100 * np.mean(_all(found, 'changed')):.1f} %", _noted(found),
                "yes" if model in study.judged else "**no: not judged**",
            )
        )  # fmt: skip
    columns = (
        "variant", "cost, base", "cost, variant", "p", "moved", "weights changed", "also", "judged",
    )  # fmt: skip
    notes = [
        "On held-out records of the variant's own task, mean over seeds. *Cost*: instructed, loss on instructions "
        "(nats per token); distilled, divergence from the teacher (nats per token); rewarded, share of chains whose "
        "greedy answer has a wrong result. *Moved*: divergence of its predictions from the base's (nats per token). A "
        "variant is judged if its cost is lower than the base's in every seed, and by one test over seeds (p < 0.05).",
    ]
    if study.teacher is not None:
        notes.append(
            f"The teacher of the distilled variants: {short(study.scale.teacher)}, trained on worked chains of "
            f"{min(study.scale.tuning.taught)} to {max(study.scale.tuning.taught)} steps; right answers by number of "
            f"steps {_by_length([study.teacher], 'exact')}, before {_by_length([study.teacher], 'exact_before')}. Each "
            "student is the base, trained on the teacher's next-token distributions along answers it sampled."
        )
    return Table("The variants", columns, tuple(rows), tuple(notes))


def beside_the_paper(study: Study) -> Table:
    """The largest loss of right answers without one block, per probe, and without the blocks critical to arithmetic."""
    paper = ("paper: Qwen2.5-7B, Llama-3.1-8B and variants", "", "up to 0.80", '"smaller"', "", "not measured", "")
    rows: list[tuple[str, ...]] = [paper]
    for model in _models(study):
        seeds = range(study.scale.seeds)
        exact = {probe: [study.profiles[model][s]["probes"][probe]["exact"] for s in seeds] for probe in ORDER}
        drops = {probe: np.array([damage(study, (model, s), probe, "exact") for s in seeds]) for probe in ORDER}
        chosen = [critical(damage(study, (model, s))) for s in seeds]
        rows.append(
            (
                named(model), " / ".join(f"{np.mean(exact[probe]):.2f}" for probe in ORDER),
                *(_largest(drops[probe]) for probe in (CHAIN, RECALL, STEP)),
                *(_elsewhere(drops[probe], chosen) for probe in (STEP, RECALL)),
            )
        )  # fmt: skip
    columns = (
        "model", "right, whole model: step / recall / chain", "chains: largest drop", "recall: largest drop",
        "steps: largest drop", "steps: drop at arithmetic's blocks", "recall: drop there",
    )  # fmt: skip
    notes = (
        "Drops in the share of right answers, of all answers, when one block is the identity. *Chains* are long "
        "answers, as in the paper; *steps* and *recall* have equally many tokens. *Arithmetic's blocks*: the quarter "
        "that is worth most by the loss of steps, chosen under the other seeds. ± 95 % over seeds. The paper's figures "
        "are of another size and kind of model: beside, not in the same units.",
    )
    return Table("Beside the paper", columns, tuple(rows), notes)


def likeness_table(found: Sequence[Likeness], what: str) -> Table:
    """Every comparison with its nulls."""
    rows = []
    for one in found:
        interval = one.interval
        rows.append(
            (
                one.question, one.of, f"{one.blocks}",
                f"{interval.estimate:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]", f"{one.inner:+.2f}",
                f"{one.shifted:+.2f}", f"{one.p_value:.2f} (least {1 / one.blocks:.2f})",
                f"{one.overlap:.2f}", f"{one.chance:.2f}",
            )
        )  # fmt: skip
    columns = (
        "compared", "of", "blocks", "Spearman, 95 %", "inner blocks", "turned", "p, depth shift",
        "critical quarter shared", "by chance",
    )  # fmt: skip
    name = {"loss": "loss of single steps", "exact": "right answers to single steps"}[what]
    notes = (
        "No pair shares records. Intervals: jackknife over seeds, not cut off at 1. *Turned*: mean correlation when "
        "one side is turned round in depth; p: share of turns, none included, at least as high as found. *Inner "
        "blocks*: without the first and the last, which matter in most networks. A variant is to be compared with *a "
        "base, other records* (as alike as records allow) and with *two independent bases* (as alike as any networks).",
    )
    return Table(f"How alike are the orders of blocks, by the {name}?", columns, tuple(rows), notes)


def blocks_table(study: Study, base: str) -> Table:
    """What each block of a base and its variants is worth."""
    models = [model for model in study.profiles if model[0] == base]
    columns = ["block"]
    cells: list[list[str]] = []
    for model in models:
        for probe in (STEP, RECALL):
            columns.append(f"{model[1]}: {probe}")
            each = [
                np.mean([damage(study, (model, s), probe, what) for s in range(study.scale.seeds)], axis=0)
                for what in ("loss", "exact")
            ]
            cells.append([f"{loss:.2f} ({exact:+.2f})" for loss, exact in zip(*each, strict=True)])
    rows = tuple((str(block), *(column[block] for column in cells)) for block in range(study.blocks(base)))
    notes = ("Rise of the loss in nats per token without the block, and fall of the share of right answers.",)
    return Table(f"{short(base)}: what each block is worth", tuple(columns), rows, notes)


def elbow_table(study: Study) -> Table:
    """Where the curve of token clusters bends, and how far that is from the critical blocks."""
    found = list(elbow_distances(study, _models(study)))
    rows = []
    for model in _models(study):
        own = [one for one in found if one[0] == model]
        if not own:
            continue
        places = [study.profiles[model][s]["elbow"] for s in range(study.scale.seeds)]
        sure = [study.profiles[model][s]["elbow_confidence"] for s in range(study.scale.seeds)]
        chosen = critical(np.mean([damage(study, (model, s)) for s in range(study.scale.seeds)], axis=0))
        distance = jackknife([one[2] for one in own], [one[1] for one in own])
        rows.append(
            (
                named(model), " ".join(map(str, places)), f"{np.mean(sure):.2f}",
                " ".join(map(str, sorted(chosen.tolist()))),
                f"{distance.estimate:.2f} [{distance.low:.2f}, {distance.high:.2f}]",
                f"{np.mean([one[3] for one in own]):.2f}",
            )
        )  # fmt: skip
    columns = ("model", "elbow, by seed", "confidence", "critical blocks", "distance, 95 %", "of a random place")
    notes = (
        f"Adjusted mutual information between the clusters ({study.scale.clusters} by k-means) of the tokens of whole "
        "chains after each block and after the first, and where two lines fit that curve better than one. Distance in "
        "blocks to the nearest critical one, elbow and critical blocks from different seeds; random: any inner block.",
    )
    return Table("Token clusters: is the elbow near the critical blocks?", columns, tuple(rows), notes)


def costs_table(study: Study) -> Table:
    """Seconds of the cells."""
    kinds = [(named(model), [one["seconds"] for one in each]) for model, each in study.variants.items()]
    rows = [(f"training {name}", plus_minus(seconds)) for name, seconds in kinds]
    rows += [(f"profile of {named(m)}", plus_minus(_all(each, "seconds"))) for m, each in study.profiles.items()]
    if study.teacher is not None:
        rows.append(("training the teacher", f"{study.teacher['seconds']:.1f}"))
    notes = (f"{top(12)} of 12 blocks, {top(8)} of 8 and {top(6)} of 6 count as critical.",)
    return Table("Seconds, beside other cells", ("cell", "seconds"), tuple(rows), notes)


def to_json(study: Study) -> dict[str, Any]:
    """Everything measured, as JSON: what the tables are made of."""
    return {
        "bases": list(study.scale.bases),
        "judged": [list(model) for model in study.judged],
        "teacher": study.teacher,
        "variants": [{"model": list(model), "seeds": list(each)} for model, each in study.variants.items()],
        "profiles": [{"model": list(model), "seeds": list(each)} for model, each in study.profiles.items()],
    }


def _models(study: Study) -> list[Model]:
    return [model for model in study.profiles if model[1] == BASE or model in study.judged]


def _all(found: Sequence[Any], key: str) -> list[float]:
    return [one[key] for one in found]


def _mean(found: Sequence[Any], key: str) -> str:
    return f"{np.mean(_all(found, key)):.3f}"


def _largest(drops: np.ndarray) -> str:
    """The largest drop of the mean over seeds, and whose it is."""
    mean = drops.mean(0)
    return f"{mean.max():.2f} (block {mean.argmax()})"


def _elsewhere(drops: np.ndarray, chosen: Sequence[np.ndarray]) -> str:
    """Mean drop at blocks chosen under the other seeds, per seed."""
    each = [
        np.mean([drops[seed][places].mean() for other, places in enumerate(chosen) if other != seed])
        for seed in range(len(drops))
    ]
    return plus_minus([float(one) for one in each])


def _noted(found: Sequence[Any]) -> str:
    if "rewards" in found[0]:
        rewards = np.mean(_all(found, "rewards"), axis=0)  # by training step
        quarter, steps = max(1, len(rewards) // 4), ", ".join(map(str, found[0]["steps"]))
        first, last = rewards[:quarter].mean(), rewards[-quarter:].mean()
        return f"chains of {steps} steps; reward {first:.2f}, at the end {last:.2f}"
    if "exact" in found[0]:
        return f"right by steps {_by_length(found, 'exact')}, base {_by_length(found, 'exact_before')}"
    return ""


def _by_length(found: Sequence[Any], key: str) -> str:
    return " ".join(f"{length}: {np.mean([one[key][length] for one in found]):.2f}" for length in found[0][key])
