"""The tables of the study of data-oblivious layers, beside what the paper states."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from keylayers.maths.ranks import spearman
from keylayers.maths.shifts import ShiftTest
from keylayers.measures.backdoor import LEAST_SUCCESS, effectiveness
from keylayers.measures.blow_ups import noted, with_rate
from keylayers.papers.data_oblivious.block_sets import others_in
from keylayers.papers.data_oblivious.block_training import NONE, Adapted, Defended, Removed
from keylayers.papers.data_oblivious.claims import list_claims
from keylayers.papers.data_oblivious.component_removal import DIRECTIONS
from keylayers.papers.data_oblivious.plan import RELEASED
from keylayers.papers.data_oblivious.profiles import Profiled
from keylayers.papers.data_oblivious.study import Study
from keylayers.studies.pages import Table, adjusted, difference, ledger, plus_minus
from keylayers.studies.retraining import ALL, blow_ups

PAPER = {
    "correlation": "-0.51 to -0.97 for five tuned models (Llama-2-7B-Chat -0.84 to -0.88), -0.31 to +0.15 for a base",
    "adaptation": "Dolly, 50 steps: all 1.06, critical 1.13, others 1.28; OpenBookQA, 38 steps: 0.83, 1.08, 1.65",
    "defence": "Llama-2-7B-Chat, success by keywords: 54.3 % with nothing frozen, 31.3 % others, 17.0 % critical; "
    "13B: 28.0, 16.7, 6.0; Phi-3-mini: 87.3, 64.3, 51.3",
}
"""The paper's figures, read off its tables; the correlation is of mean CKA, so its sign is the other way round."""

LEAST_EXACT = 0.1
"""Exact answers on clean prompts below which what a defence costs cannot be told by them."""


def introduction(study: Study, scale: str) -> str:
    """What was done, and how it differs from the paper."""
    models = ", ".join(dict.fromkeys(one.start.base.teach.inputs.model.rsplit("/", 1)[-1] for one in study.profiled))
    released = any(RELEASED in one.shifts for one in study.profiled)
    beside = " (its own form is shown beside)" if released else ""
    triggers = ", ".join(dict.fromkeys(name for one in study.defended for name in one.tuned))
    others = f"; other triggers than the paper has: {triggers}" if triggers else ""
    return (
        f"Made by `keylayers reproduce data-oblivious --scale {scale}`. Models: {models}, each as it is (*base*) and "
        "after all its matrices were tuned to answer requests (*tuned*). Critical blocks are those "
        "whose output is least like their neighbours' (CKA), by mean rank over corpora, before any tuning.\n\n"
        "What differs from the paper: models of 0.26 to 2.5 million parameters and 5 to 12 blocks in place of 3 to 13 "
        "billion and 28 to 40; LoRA where it tunes in full, and a tuned start of our making; unbiased CKA, a block's "
        f"similarity with itself left out{beside}; a null that shifts curves along the blocks in place of p-values "
        "that take neighbouring blocks for independent; attack success as the attacker's words, not a list of keywords "
        f"or a judge model, and right answers word for word, whatever follows{others}. In the ledger a correlation's "
        "interval is over models (or corpora), its p-value two-sided by shifts, and *detectable* is the size from "
        "which that is below 0.05 before adjustment (inf: so few shifts give no such p)."
    )


def make_tables(study: Study) -> list[Table]:
    """Claims first, then every part that was measured."""
    found = [
        ledger(adjusted(list_claims(study))),
        starting(study.profiled),
        profile_table(study.profiled),
        agreement_table(study.profiled),
    ]
    found.append(correlation_table(study.profiled))
    found += [adaptation_table(one) for one in study.adapted]
    found += [removal_table(one) for one in study.removed]
    for one in study.defended:
        found += [defence_table(one), trigger_table(one)]
    return found


def starting(found: Sequence[Profiled]) -> Table:
    """What the tuned starts were taught, and which blocks the profiles call critical."""
    rows = []
    for one in found:
        taught = one.start.taught
        rows.append(
            (
                one.start.name,
                f"{len(one.order)}",
                "" if taught is None else f"{one.start.base.taught}: {taught[0]:.2f} to {taught[1]:.2f}",
                " ".join(map(str, one.order)),
            )
        )
    columns = ("start", "blocks", "taught, loss before and after", "blocks, the most critical first")
    return Table("Starting points", columns, tuple(rows), ("Losses in nats per token, on test records.",))


def profile_table(found: Sequence[Profiled]) -> Table:
    """Shift of every block on every corpus, by the way that chooses."""
    rows = [
        (one.start.name, corpus, " ".join(f"{value:.3f}" for value in shift))
        for one in found
        for corpus, shift in one.shifts[one.way].items()
    ]
    notes = ("1 - mean CKA (unbiased) of a block's output with its neighbours', block 0 first; high: change point.",)
    return Table("Where the representation changes", ("start", "corpus", "shift of each block"), tuple(rows), notes)


def agreement_table(found: Sequence[Profiled]) -> Table:
    """Whether it is the same place whatever the corpus."""
    rows = []
    for one in found:
        for way, shifts in one.shifts.items():
            test = one.agreement(way)
            pairs = [spearman(shifts[a], shifts[b]).value for a, b in combinations(shifts, 2)]
            rows.append((one.start.name, way, *_tested(test), f"{min(pairs):+.2f} to {max(pairs):+.2f}"))
    columns = ("start", "profile", "mean correlation", "p, shifted blocks", "smallest p", "needed", "pairs of corpora")
    notes = (
        "Spearman over blocks, mean over pairs of corpora. *p*: share of the circular shifts, each corpus by itself, "
        "whose mean is at least as high; *needed*: the least correlation with p below 0.05 (inf: so few shifts give "
        "none). The paper shows profiles of six "
        "corpora that look alike and no figure.",
    )
    return Table("The same blocks whatever the corpus?", columns, tuple(rows), notes)


def correlation_table(found: Sequence[Profiled]) -> Table:
    """Whether it is where tuning was needed."""
    rows = []
    for one in found:
        for window in one.needed:
            each = [spearman(one.mean_rank(), loss).value for loss in one.losses(window)]
            parts = ", ".join(f"{domain} {value:+.2f}" for domain, value in zip(one.needed[window], each, strict=True))
            others = [f"{one.correlation(window, way).value:+.2f}" for way in list(one.shifts)[1:]]
            plain = one.by_depth(window)
            tested = _tested(one.correlation(window))
            depth = f"{plain.value:+.2f} (p {plain.p_high:.2g})"
            rows.append((one.start.name, window, *tested, parts, ", ".join(others), depth))
    columns = (
        "start", "put back", "correlation", "p, shifted blocks", "smallest p", "needed", "by domain",
        "other profiles", "first blocks first",
    )  # fmt: skip
    notes = (
        "Spearman of the shift (mean rank over corpora) with the loss added when tuned blocks are put back, mean over "
        "domains and seeds; positive: tuning was needed where the representation changes. One shift for all domains, "
        "so p cannot fall below 1 / blocks. *First blocks first*: the plainest profile. The paper: "
        f"{PAPER['correlation']} (of CKA, hence the other sign).",
    )
    return Table("Is it where tuning was needed?", columns, tuple(rows), notes)


def adaptation_table(one: Adapted) -> Table:
    """Few blocks trained alone on a domain."""
    rows, others = [], others_in(one.blocks)
    for arm in sorted(one.trained, key=lambda name: float(np.mean(one.losses(name)))):
        first = one.trained[arm][0]
        sets = "; ".join(" ".join(map(str, each)) for each in one.blocks.get(arm, ()))
        gain = f"{one.gains(arm).mean():.3f}" if one.judged else ""
        against = "" if arm == others else difference(one.losses(arm), one.losses(others))
        trainable = f"{first['trainable']:,.0f}"
        rate = with_rate(one.rates[arm], blow_ups(one.trained)[arm])
        rows.append((arm, sets, trainable, rate, plus_minus(one.losses(arm)), gain, against))
    columns = (
        "blocks trained", "which, first seed", "trainable", "lr", "test loss", "gain recovered", f"minus {others}",
    )  # fmt: skip
    notes = (
        f"Before {one.before['test']:.3f} nats per token; {len(one.trained[ALL])} seeds; ± is 95 %, paired by seed. "
        f"LoRA on every matrix of the blocks; *all* has the head too. The paper (full tuning): {PAPER['adaptation']}.",
        *noted(blow_ups(one.trained)),
        *(() if one.judged else ("Not judged: training everything does not lower the loss of calibration records.",)),
    )
    return Table(f"{one.start.name}: {one.task.name}, few blocks trained", columns, tuple(rows), notes)


def defence_table(one: Defended) -> Table:
    """What freezing keeps out, and what it costs, over the triggers whose attack works with nothing frozen."""
    judged, rows = one.judged, []
    usable = fmean(one.values(NONE, "exact")) if judged else 0.0
    for arm in one.rates if judged else ():
        sets = "; ".join(" ".join(map(str, each)) for each in one.blocks.get(arm, ()))
        fell = [fmean(one.values(NONE, what)) - fmean(one.values(arm, what)) for what in ("attack", "exact")]
        rows.append(
            (
                arm, sets, f"{one.rates[arm]:g}",
                *(f"{np.mean(one.values(arm, what)):.3f}" for what in ("attack", "false", "attack_loss", "recovered")),
                f"{np.mean(one.values(arm, 'test')):.3f}", f"{np.mean(one.learnt(arm)):.3f}",
                f"{np.mean(one.values(arm, 'exact')):.3f}", 
                "" if arm == NONE or usable < LEAST_EXACT else f"{effectiveness(*fell):.3f}",
            )
        )  # fmt: skip
    columns = (
        "frozen", "which, first seed", "lr", "attack succeeds", "without trigger", "loss of the attack's words",
        "recovered", "loss, clean", "learnt of the task", "exact, clean", "DER",
    )  # fmt: skip
    seeds, share = len(one.values(NONE, "attack", next(iter(one.tuned)))), one.frozen
    left = ", ".join(name for name in one.tuned if name not in judged)
    notes = (
        f"{share} blocks frozen; means over {len(judged)} of {len(one.tuned)} triggers and {seeds} seeds"
        + (f"; not judged, because their attack fails with nothing frozen: {left}" if left else "")
        + ". *Attack succeeds*: share of "
        "triggered test prompts to which greedy decoding writes the attacker's words (teacher-forced; the end is not "
        "asked for); "
        "*without trigger*: of clean prompts; *recovered*: of triggered ones, with the right answer. *Learnt*: nats "
        "per token gained on clean test records. *DER*: what attack success falls by, less what exact answers fall by, "
        "against nothing frozen; 0.5 is no effect; left out where these are below "
        f"{LEAST_EXACT:.0%} with nothing frozen, as nothing could fall. Triggers are judged by the success that "
        "nothing frozen is then compared with, which tilts that comparison slightly upwards. Each arm at the "
        f"rate that served it on clean records. The paper: {PAPER['defence']}; it gives no benign utility.",
    )
    return Table(f"{one.start.name}: {one.task.name}, poisoned, {share} blocks frozen", columns, tuple(rows), notes)


def trigger_table(one: Defended) -> Table:
    """Attack success by trigger."""
    rows, judged = [], one.judged
    for trigger in one.tuned:
        seeds = {arm: one.values(arm, "attack", trigger) for arm in one.rates}
        words = {arm: np.mean(one.values(arm, "attack_loss", trigger)) for arm in one.rates}
        name = trigger if trigger in judged else f"{trigger} (not judged)"
        rows.append((name, *(f"{plus_minus(seeds[arm])} ({words[arm]:.2f})" for arm in one.rates)))
    notes = (
        "Share of triggered prompts, ± 95 % over seeds; in brackets the loss of the attack's words. Not judged: with "
        f"nothing frozen the attack succeeds on less than {LEAST_SUCCESS:.0%}.",
    )
    title = f"{one.start.name}: {one.task.name}, {one.frozen} blocks frozen, by trigger"
    return Table(title, ("trigger", *one.rates), tuple(rows), notes)


def removal_table(one: Removed) -> Table:
    """What becomes of answers without the top components of one block."""
    rows = [_answers("nothing", "", "", one.intact)]
    for (label, count, way), found in one.found.items():
        rows.append(_answers(f"{label} ({one.places[label]})", f"{count}, {found['share']:.0%}", way, found))
    columns = ("block", "components, variance", "way", "exact", "last word right", "words", "first answer")
    notes = (
        f"{len(one.intact['words'])} test prompts, greedy; right answers have {np.mean(one.intact['right_words']):.1f} "
        "words. *stored*: the prompt's part along the components, the same vector at every token, as released; "
        "*projected*: each token's own part; *random*: a vector of the stored part's length in a random direction, "
        f"mean over {DIRECTIONS} of them. The paper shows single examples, in which removal makes answers terse or "
        "leaves out the reasoning.",
    )
    return Table(f"{one.start.name}: {one.task.name}, components removed", columns, tuple(rows), notes)


def _answers(label: str, components: str, way: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (f"{found['exact']:.2f}", f"{found['ending']:.2f}")
    return (label, components, way, *shares, f"{np.mean(found['words']):.1f}", found["first"].strip()[:60])


def _tested(test: ShiftTest) -> tuple[str, str, str, str]:
    return f"{test.value:+.2f}", f"{test.p_high:.2g}", f"{test.smallest_p:.2g}", f"{test.needed:+.2f}"
